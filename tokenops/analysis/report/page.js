"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const full = data.methods[0], depth = full.tokens_per_layer.length;
const $ = id => document.getElementById(id);

function make(tag, attributes, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

const digits = (x, n = 3) => x === null || x === undefined ? "" : String(Number(x.toPrecision(n)));
const whole = x => Number.isInteger(x) ? String(x) : x.toFixed(1);
const title = method => method === full ? "all tokens" : method.name;

// ---- where tokens lie ----------------------------------------------------------------------------------

for (const visual of data.visuals) {
  const alike = data.visuals.filter(v => v.kind === visual.kind);
  visual.name = alike.length > 1 ? `${visual.kind} ${alike.indexOf(visual) + 1}` : `the ${visual.kind}`;
  visual.ordinal = new Map(visual.index.map((token, i) => [token, i]));
  visual.places = visual.grid.map(([part, row, column]) => {
    if (row < 0) return null;
    for (const [v, view] of visual.views.entries())
      for (const [own, top, left] of view.tiles)
        if (own === part) return {view: v, row: top + row, column: left + column};
    return null;
  });
  for (const view of visual.views) view.cells = new Map();
  visual.places.forEach((p, i) => p && visual.views[p.view].cells.set(p.row * visual.views[p.view].columns + p.column, i));
}

const everyone = data.visuals.map(visual => new Set(visual.index.keys()));

// what a method does with a visual at a step: 0 is before the language model, s is layer s - 1
function at(method, visual, step) {
  const own = method.stages.filter(stage => stage.visual === visual);
  const stage = own.find(s => s.layer === step - 1 && step > 0) || own.find(s => s.layer === null);
  if (!stage) return {kept: everyone[visual], stage: null};
  if (!stage.kept) {
    stage.kept = new Set(stage.index.map(token => data.visuals[visual].ordinal.get(token)));
    stage.ranks = stage.scores && ranked(stage.scores);
    if (stage.mass) stage.stands = new Map(stage.index.map((token, i) => [data.visuals[visual].ordinal.get(token), stage.mass[i]]));
  }
  return {kept: stage.kept, stage};
}

// share of the scored tokens that a token outdoes; equal scores share a rank
function ranked(scores) {
  const sorted = scores.filter(s => s !== null).sort((a, b) => a - b), first = new Map();
  sorted.forEach((s, i) => first.has(s) || first.set(s, i));
  return scores.map(s => s === null ? null : first.get(s) / Math.max(sorted.length - 1, 1));
}

// ---- painting ------------------------------------------------------------------------------------------

const RAMP = [[0, 32, 77], [124, 123, 120], [255, 234, 70]];

function colour(share) {
  const i = share < .5 ? 0 : 1, t = 2 * share - i;
  return `rgba(${RAMP[i].map((low, c) => Math.round(low + t * (RAMP[i + 1][c] - low)))},.82)`;
}

function paint(picture, shown, heat) {
  const {canvas, view} = picture, box = canvas.getBoundingClientRect(), scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(box.width * scale));
  canvas.height = Math.max(1, Math.round(box.height * scale));
  const pen = canvas.getContext("2d"), w = canvas.width / view.columns, h = canvas.height / view.rows;
  const x = column => Math.round(column * w), y = row => Math.round(row * h);
  const stays = (row, column) => row >= 0 && column >= 0 && row < view.rows && column < view.columns
    && shown.kept.has(view.cells.get(row * view.columns + column));
  const ranks = heat && shown.stage && shown.stage.ranks;
  const edges = new Path2D(), hatch = new Path2D();
  for (let row = 0; row < view.rows; row++) for (let column = 0; column < view.columns; column++) {
    const token = view.cells.get(row * view.columns + column), kept = stays(row, column);
    const [l, t, r, b] = [x(column), y(row), x(column + 1), y(row + 1)];
    const rank = ranks && token !== undefined ? ranks[token] : null;
    if (rank !== null) pen.fillStyle = colour(rank);
    else if (!kept) pen.fillStyle = "rgba(12,12,18,.8)";
    if (rank !== null || !kept) pen.fillRect(l, t, r - l, b - t);
    if (token === undefined) { hatch.moveTo(l, b); hatch.lineTo(r, t); }
    if (!kept) continue;
    if (!stays(row - 1, column)) { edges.moveTo(l, t); edges.lineTo(r, t); }
    if (!stays(row + 1, column)) { edges.moveTo(l, b); edges.lineTo(r, b); }
    if (!stays(row, column - 1)) { edges.moveTo(l, t); edges.lineTo(l, b); }
    if (!stays(row, column + 1)) { edges.moveTo(r, t); edges.lineTo(r, b); }
  }
  const stroke = (path, style, width) => { pen.strokeStyle = style; pen.lineWidth = width * scale; pen.stroke(path); };
  stroke(hatch, "rgba(200,200,210,.5)", 1);
  if (shown.kept.size < everyone[picture.visual].size) {
    const thin = Math.min(w, h) / scale < 12;
    stroke(edges, "rgba(0,0,0,.8)", thin ? 2 : 4);
    stroke(edges, "#fff", thin ? 1 : 2);
  }
  if (picture.cursor) {
    const {row, column} = picture.cursor, path = new Path2D();
    path.rect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    stroke(path, "#000", 5);
    stroke(path, "#ff9d2e", 3);
  }
}

// ---- one card for every method -------------------------------------------------------------------------

function card(method) {
  const read = make("p", {class: "read faint"});
  const made = {method, read, pictures: [], count: make("p", {class: "count"}), bars: []};
  const figures = make("div", {class: "pictures"});
  data.visuals.forEach((visual, number) => {
    const first = made.pictures.length;
    visual.views.forEach((view, v) => (visual.kind === "image" || v === 0) && made.pictures.push(picture(made, number, v)));
    figures.append(...made.pictures.slice(first).map(p => p.figure));
  });
  const most = Math.max(...full.tokens_per_layer);
  const numbers = method.tokens_per_layer.map(whole).join(", ");
  const chart = make("div", {class: "chart", role: "img", "aria-label": `Visual tokens of each layer: ${numbers}`});
  method.tokens_per_layer.forEach((tokens, layer) => {
    const bar = make("span", {style: `height:${100 * tokens / most}%`, title: `layer ${layer}: ${whole(tokens)} tokens`});
    bar.addEventListener("click", () => { $("stage").value = layer + 1; update(); });
    made.bars.push(bar);
    chart.append(bar);
  });
  made.root = make("article", {"aria-label": title(method)}, make("h3", {}, title(method)),
    make("p", {class: "answer", dir: "auto"}, method.answer || "(no answer)"), figures, made.count, read, chart,
    make("p", {}, `visual tokens of each layer, mean ${digits(mean(method.tokens_per_layer))} of ${whole(most)}`));
  return made;
}

const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

function picture(card, number, v) {
  const visual = data.visuals[number], view = visual.views[v];
  const made = {card, visual: number, view, v, cursor: null};
  made.image = make("img", {src: view.picture, alt: ""});
  made.canvas = make("canvas", {"aria-hidden": "true"});
  made.box = make("div", {class: `view${view.width <= 128 ? " small" : ""}`, tabindex: "0", role: "img",
    style: `aspect-ratio:${view.width}/${view.height}`}, made.image, made.canvas);
  made.caption = make("figcaption", {}, view.title);
  const named = view.title || data.visuals.length > 1;
  made.figure = make("figure", {}, made.box, ...(named ? [made.caption] : []));
  made.box.addEventListener("click", event => {
    const box = made.box.getBoundingClientRect();
    point(made, Math.floor((event.clientY - box.top) / box.height * made.view.rows),
      Math.floor((event.clientX - box.left) / box.width * made.view.columns));
  });
  made.box.addEventListener("keydown", event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    const from = made.cursor || {row: 0, column: 0}, by = made.cursor ? step : [0, 0];
    point(made, from.row + by[0], from.column + by[1]);
  });
  return made;
}

// put the cursor of all methods on a cell: they are compared token by token
function point(chosen, row, column) {
  const {rows, columns} = chosen.view;
  const cell = {row: Math.min(Math.max(row, 0), rows - 1), column: Math.min(Math.max(column, 0), columns - 1)};
  for (const each of cards) {
    each.read.setAttribute("aria-live", each === chosen.card ? "polite" : "off");
    for (const p of each.pictures) p.cursor = p.visual === chosen.visual && p.v === chosen.v ? cell : null;
  }
  update();
}

function told(p, shown) {
  const {row, column} = p.cursor, token = p.view.cells.get(row * p.view.columns + column);
  if (token === undefined) return `row ${row}, column ${column}: no token`;
  const number = data.visuals[p.visual].index[token], kept = shown.kept.has(token);
  const words = [`token ${number} (row ${row}, column ${column}): ${kept ? "kept" : "not kept"}`];
  const scores = shown.stage && shown.stage.scores, mass = kept && shown.stage && shown.stage.stands;
  if (scores) words.push(scores[token] === null ? "no score"
    : `score ${scores[token]}, rank ${1 + scores.filter(s => s !== null && s > scores[token]).length} of ${scores.filter(s => s !== null).length}`);
  if (mass) words.push(`stands for ${digits(mass.get(token))} tokens`);
  return words.join("; ");
}

// ---- showing a step ------------------------------------------------------------------------------------

function show(card, step, frame, heat) {
  const states = data.visuals.map((_, v) => at(card.method, v, step));
  const words = states.map(({kept}, v) => `${data.visuals.length > 1 ? `${data.visuals[v].name}: ` : ""}${kept.size} of ${data.visuals[v].n} tokens`);
  const unplaced = states.map(({kept}, v) => data.visuals[v].places.filter((p, i) => !p && kept.has(i)).length);
  const beside = unplaced.reduce((a, b) => a + b, 0);
  card.count.textContent = words.join("; ") + (beside ? `; ${beside} of them without a place (CLS)` : "");
  const nan = states.reduce((sum, s) => sum + (s.stage ? s.stage.nan_scores : 0), 0);
  const silent = heat && !states.some(s => s.stage && s.stage.ranks);
  const lines = [];
  for (const p of card.pictures) {
    const visual = data.visuals[p.visual], shown = states[p.visual];
    if (visual.kind === "video") {
      const v = Math.min(frame, visual.views.length - 1);
      if (v !== p.v) {
        Object.assign(p, {v, view: visual.views[v]});
        p.image.src = p.view.picture;
      }
    }
    const here = [...p.view.cells.values()], kept = here.filter(i => shown.kept.has(i)).length;
    const label = [data.visuals.length > 1 ? visual.name : "", p.view.title].filter(Boolean).join(", ");
    p.caption.textContent = label;
    p.box.setAttribute("aria-label", `${label || visual.name}, ${title(card.method)}: ${kept} of ${here.length} tokens kept`);
    paint(p, shown, heat);
    if (p.cursor) lines.push(told(p, shown));
  }
  if (silent && card.method !== full) lines.push("no scores here");
  if (nan) lines.push(`${nan} scores are not a number; they rank last`);
  card.read.textContent = lines.join(" · ");
  card.bars.forEach((bar, layer) => bar.classList.toggle("here", layer === step - 1));
}

function update() {
  const step = Number($("stage").value), frame = Number($("frame").value), heat = $("heat").checked;
  const where = step ? `layer ${step - 1} of 0 to ${depth - 1}` : "after the projector";
  $("where").textContent = where;
  $("stage").setAttribute("aria-valuetext", where);
  const clip = data.visuals.filter(v => v.kind === "video").sort((a, b) => b.views.length - a.views.length)[0];
  $("when").textContent = clip ? clip.views[frame].title : "";
  $("frame").setAttribute("aria-valuetext", $("when").textContent);
  $("legend").hidden = !heat;
  for (const each of cards) show(each, step, frame, heat);
  for (const [layer, row] of [...$("by-layer").tBodies[0].rows].entries()) row.classList.toggle("here", layer === step - 1);
}

// ---- numbers -------------------------------------------------------------------------------------------

const works = data.methods.flatMap(m => m.cost.flops === null ? [] : [m.cost.flops, ...m.cost.layers]);
const [unit, divisor] = Math.max(...works, 0) >= 1e12 ? ["TFLOP", 1e12] : Math.max(...works, 0) >= 1e9 ? ["GFLOP", 1e9] : ["MFLOP", 1e6];

function table(target, head, rows) {
  target.append(make("thead", {}, make("tr", {}, ...head.map(name => make("th", {scope: "col", class: name === "answer" ? "words" : ""}, name)))),
    make("tbody", {}, ...rows.map(([first, ...cells]) => make("tr", {}, make("th", {scope: "row"}, first),
      ...cells.map(cell => cell instanceof Node ? cell : make("td", {}, cell))))));
}

function summary() {
  const timed = data.methods.every(m => m.time), counted = data.methods.every(m => m.cost.flops !== null);
  const slowest = timed ? Math.max(...data.methods.map(m => m.time.seconds)) : 0;
  const head = ["method", "answer", "visual tokens, mean of layers"];
  if (timed) head.push("prefill, ms", "times as fast", "possible here");
  if (counted) head.push(unit, "of all tokens");
  table($("summary"), head, data.methods.map(m => {
    const cells = [title(m), make("td", {class: "words", dir: "auto"}, m.answer || "(no answer)"), digits(mean(m.tokens_per_layer), 4)];
    if (timed) {
      const {seconds, speedup, limit} = m.time;
      const width = `width:${100 * seconds / slowest}%`;
      cells.push(make("td", {}, digits(1e3 * seconds), make("span", {class: "bar", style: width})));
      cells.push(m === full ? "1" : `${speedup.median.toFixed(2)} (${speedup.low.toFixed(2)} to ${speedup.high.toFixed(2)})`);
      cells.push(limit && limit.speedup !== null ? limit.speedup.toFixed(2) : "");
    }
    if (counted) cells.push(digits(m.cost.flops / divisor), `${(100 * m.cost.flops / full.cost.flops).toFixed(0)} %`);
    return cells;
  }));
  notes(timed, counted);
}

function notes(timed, counted) {
  const say = words => $("notes").append(make("p", {class: "faint"}, words));
  if (timed) {
    const t = data.timing, s = full.time.speedup;
    const bracket = s.verdict === "too few runs to tell" ? `In brackets, the smallest and the largest: ${s.verdict}, six would do.`
      : `In brackets, an interval for the median that holds it with ${(100 * s.confidence).toFixed(0)} %.`;
    say(`Prefill: from inputs to the first token, vision tower included; ${t.runs} interleaved rounds, ${t.timer} time, ` +
      `${t.dtype}, ${t.machine}, ${t.threads} ${t.threads === 1 ? "thread" : "threads"}, torch ${t.torch}. ` +
      `${bracket} Possible here: the most by the cost model on this device, an estimate.`);
  }
  if (counted) say(`${unit}: counted by the cost model for the whole prefill, vision tower included.`);
  for (const m of data.methods) for (const reason of new Set([m.cost.reason, m.time && m.time.limit && m.time.limit.reason]))
    if (reason) say(`${title(m)}: ${reason}.`);
}

function byLayer() {
  const rows = full.tokens_per_layer.map((_, layer) => [String(layer), ...data.methods.map(m => {
    const tokens = whole(m.tokens_per_layer[layer]);
    return m.cost.layers ? make("td", {}, tokens, make("span", {class: "faint"}, ` · ${digits(m.cost.layers[layer] / divisor)}`)) : tokens;
  })]);
  const counted = data.methods.some(m => m.cost.layers);
  table($("by-layer"), ["layer", ...data.methods.map(title)], rows);
  $("by-layer").prepend(make("caption", {class: "faint"}, `Visual tokens that ran, mean over images${counted ? ` · ${unit} of the layer by the cost model` : ""}`));
}

// ---- the page ------------------------------------------------------------------------------------------

const millions = data.parameters >= 1e9 ? `${digits(data.parameters / 1e9, 2)} billion` : `${digits(data.parameters / 1e6, 2)} million`;
$("about").textContent = `${data.model}, ${millions} parameters, ${depth} layers; ` +
  `${data.visuals.reduce((n, v) => n + v.n, 0)} visual and ${data.text_tokens} other tokens`;
for (const visual of data.visuals) if (visual.original) {
  const {picture, width, height} = visual.original;
  $("given").append(make("figure", {}, make("img", {src: picture, alt: `${visual.name} as given`}),
    make("figcaption", {}, `${visual.name} as given, ${width} × ${height}`)));
}
for (const method of data.methods) if (method.code) $("code").append(make("dt", {}, method.name), make("dd", {}, make("pre", {}, method.code)));
$("made").textContent = `Made by tokenops ${data.tokenops_version}. Pictures show what the vision tower was given: what the processor cut off is not on them.`;

const cards = data.methods.map(card);
$("methods").append(...cards.map(c => c.root));
summary();
byLayer();
$("stage").max = depth;
const longest = Math.max(...data.visuals.map(v => v.kind === "video" ? v.views.length : 0));
$("frames").hidden = longest < 2;
$("frame").max = Math.max(longest - 1, 0);
for (const id of ["stage", "frame", "heat"]) $(id).addEventListener("input", update);
$("controls").addEventListener("submit", event => event.preventDefault());
new ResizeObserver(update).observe($("methods"));
update();
