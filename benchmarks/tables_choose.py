"""Tables of ``docs/choose.md``: the best method for what one is ready to do, and what each asks for."""

from __future__ import annotations

from tables_kit import markdown, read

# what one is ready to do -> the methods of pocket_routing.json it opens; the best of them is shown
READY = (
    ("nothing", ("DivPrune", "uniform", "random")),
    ("nothing; the vision tower has a CLS token", ("CLS attention", "VisionZip")),
    ("nothing; factors of the model's own weights", ("ALVTS, not calibrated",)),
    (
        "calibrate factors on a few samples",
        (
            "ALVTS",
            "ALVTS, heads apart",
            "ALVTS, ratios by score mass",
            "ALVTS, ratios by gain",
            "hybrid DivPrune x2",
        ),
    ),
    ("train a scorer", ("VisionSelector",)),
    ("both", ("hybrid x1.5", "hybrid x2", "hybrid x3", "hybrid x2, ratios by gain")),
)
MEASURED_AS = {
    "divprune": "DivPrune",
    "uniform": "uniform",
    "random": "random",
    "cls_attention": "CLS attention",
    "visionzip": "VisionZip",
    "alvts": "ALVTS",
    "visionselector": "VisionSelector",
    "fastv": "FastV (exit)",
}
AT = {"after_projector": "before", "layers": "inside"}
SHOWN, TWO = (72, 29, 14, 7), (29, 14)


def choose() -> str:
    """The best method at equal mean tokens per layer, for each kind of preparation."""
    result = read("pocket_routing")
    rows = {(r["method"], r["budget"]): r for r in result["rows"] if abs(r["mean"] - r["budget"]) < 1}
    budgets = sorted({budget for _, budget in rows} & set(SHOWN), reverse=True)
    body = []
    for ready, methods in READY:
        cells = [ready]
        for budget in budgets:
            known = [(rows[m, budget]["accuracy"], m) for m in methods if (m, budget) in rows]
            cells.append(f"{max(known)[1]} {100 * max(known)[0]:.1f}" if known else "–")
        body.append(cells)
    head = f"all 144 tokens: {100 * result['full']:.1f} %; {result['questions']} held-out questions\n\n"
    return head + markdown(["ready to · best in % at tokens", *map(str, budgets)], body)


def choose_recipes() -> str:
    """Every recipe: where it acts, what it asks of the model, what it learns, and what was measured."""
    from tokenops.cli.components import signals, trainable
    from tokenops.registry import registered

    rows = {(r["method"], r["budget"]): r for r in read("pocket_routing")["rows"]}
    body = []
    for entry in registered("recipe"):
        if not entry.component.__module__.startswith("tokenops."):
            continue
        pipeline = entry.make()
        asked = [f"`{name}`" for name, must in signals(entry).items() if must and name != "visual"]
        cells = []
        for budget in TWO:
            row = rows.get((MEASURED_AS.get(entry.name, ""), budget))
            mean = "" if row is None or abs(row["mean"] - budget) < 1 else f" ({row['mean']:.0f})"
            cells.append("–" if row is None else f"{100 * row['accuracy']:.1f}{mean}")
        place = ", ".join(AT[place] for place in pipeline.stages)
        body.append(
            [f"`{entry.name}`", place, ", ".join(asked) or "–", "yes" if trainable(entry) else "–", *cells]
        )
    return markdown(["recipe", "acts", "asks for", "learns", *(f"{k} tokens" for k in TWO)], body)


def choose_cost() -> str:
    """Measured prefill speed-up of the language model, pruning before it against routing in every layer."""
    rows = read("routing_cost")["rows"][1:]
    keeps = sorted({row["keep"] for row in rows})
    kinds: dict[str, dict[float, str]] = {}
    for row in rows:
        name = row["name"].replace(f" {row['keep']}", "").strip()
        name = {"prune": "drop before the language model", "route": "route, scores for nothing"}.get(
            name, name
        )
        kinds.setdefault(name.replace("alvts R=", "ALVTS, rank "), {})[row["keep"]] = f"{row['speedup']:.2f}×"
    body = [[name, *(cells.get(keep, "–") for keep in keeps)] for name, cells in kinds.items()]
    return markdown(["language-model prefill at keep", *(f"{100 * keep:g} %" for keep in keeps)], body)
