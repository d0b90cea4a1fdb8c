"""Write the tables of README and ``docs`` from the committed result files.

    python benchmarks/tables.py          # rewrite
    python benchmarks/tables.py --check  # fail if a table is out of date

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a function below.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

import tables_choose as choose
import tables_limits as limits
import tables_routing as routing
import tables_speed as speed
from tables_kit import ROOT, markdown, read

TUTORIALS = tuple(
    f"docs/tutorials/{page}.md" for page in ("attention", "hybrid", "timm", "train-visionselector")
)
PAGES = ("README.md", "docs/relaxations.md", "docs/choose.md", "docs/results.md", *TUTORIALS)
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def selection() -> str:
    """Accuracy on held-out questions per method and budget."""
    result = read("pocket_selection")
    rows = {(row["method"], row["keep"]): row for row in result["rows"]}
    full = rows["full", 1.0]["accuracy"]
    keeps = sorted({keep for method, keep in rows if method != "full"}, reverse=True)
    methods = list(dict.fromkeys(method for method, _ in rows if method != "full"))
    body = [
        [method.replace("visionselector", "**VisionSelector**")]
        + [f"{100 * rows[method, keep]['accuracy']:.1f}" for keep in keeps]
        for method in methods
    ]
    questions = f"all 144 tokens: {100 * full:.1f} %; {result['questions']} held-out questions\n\n"
    return questions + markdown(["accuracy in % at keep", *(f"{100 * k:g} %" for k in keeps)], body)


def gains() -> str:
    """VisionSelector against the best baseline, and against all tokens."""
    result = read("pocket_selection")
    rows = {row["keep"]: row for row in result["rows"] if row["method"] == "visionselector"}
    body = []
    for keep, gain in result["visionselector_minus_best_baseline"].items():
        row = rows[float(keep)]
        low, high = row["interval"]
        more, less = gain["interval"]
        body.append(
            [
                f"{100 * float(keep):g} %",
                f"{100 * row['minus_full']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{100 * gain['gain']:+.1f} [{100 * more:+.1f}, {100 * less:+.1f}]",
                gain["rival"],
            ]
        )
    return markdown(["keep", "minus all tokens", "minus best baseline", "that baseline"], body)


def ablation() -> str:
    """Hard held-out accuracy of scorers trained in different ways."""
    result = read("pocket_ablation")
    settings = result["settings"]
    keeps, seeds = settings["keeps"], settings["seeds"]

    def budget(keep: float | list[float]) -> str:
        return " – ".join(f"{100 * k:g} %" for k in (keep if isinstance(keep, list) else [keep]))

    body = [
        [row["gate"], row["relaxation"], row["curriculum"], budget(row["budget"])]
        + [f"{100 * row['accuracy'][str(keep)]:.1f}" for keep in keeps]
        + [f"{row['soft_hard_gap']:.3f}"]
        for row in result["rows"]
    ]
    header = [
        "gate",
        "relaxation",
        "curriculum",
        "budget",
        *(f"{100 * k:g} %" for k in keeps),
        "soft–hard gap",
    ]
    what = f"accuracy in % of {settings['questions']} held-out questions, {seeds} seed{'s' * (seeds > 1)}; "
    how = f"{settings['steps']} steps with {settings['batch']} questions each\n\n"
    return what + how + markdown(header, body)


def decode() -> str:
    """Decoding speed, attached over unattached."""
    body = [
        [str(r["batch"]), f"{100 * r['keep']:g} %", f"{r['speed_ratio']:.2f}×"]
        for r in read("decode")["rows"]
    ]
    return markdown(["batch", "keep", "tokens/s against unattached"], body)


def spread(values: list[float], digits: int = 1) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle}× [{low}, {high}]"


def relaxation_bars() -> str:
    """What was asked for and what was measured."""
    result = read("relaxations")
    body = [
        [
            bar["what"],
            f"{bar['wanted']:g}×",
            f"{bar['least']:.3g}×",
            f"{bar['median']:.3g}×",
            str(bar["cells"]),
        ]
        for bar in result["bars"]
    ]
    short = [bar["what"] for bar in result["bars"] if bar["least"] < bar["wanted"]]
    missed = f"\nShort of what was asked for, in some cells: {'; '.join(short)}.\n" if short else ""
    header = ["better than, on normal scores unless said", "asked for", "least", "median", "cells"]
    s = result["settings"]
    where = f"{s['machine']} ({s['processor']}), {s['threads']} thread, torch {s['torch']}"
    return where + f", entmax {s['entmax']}; {s['repeats']} repetitions\n\n" + markdown(header, body) + missed


def relaxation_speed() -> str:
    """The sigmoid member against 64 bisections, eager and compiled, on normal scores."""
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in read("relaxations")["against_bisection"]:
        if row["data"] == "normal":
            cells.setdefault((row["dtype"], row["n"], row["share"]), {})[row["direction"]] = row
    body = []
    for (dtype, n, share), pair in cells.items():
        line = [f"{dtype}, n = {n}, k = {100 * share:g} %"]
        for row in pair.values():
            line += [f"{row['ms']['reference'][1]:.2f}", spread(row["ratio"]["eager"])]
            line += [f"{row['ratio']['compiled'][1]:.1f}×" if "compiled" in row["ratio"] else "–"]
        body.append(line)
    header = [
        "",
        *(f"{what}{mode}" for what in ("forward: ", "both: ") for mode in ("ms", "eager", "compiled")),
    ]
    return markdown(header, body)


def relaxation_awkward() -> str:
    """Least and largest ratio on scores that are hard for a solver."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in read("relaxations")["against_bisection"]:
        ratios.setdefault(row["data"], {}).setdefault(row["direction"], []).append(row["ratio"]["eager"][1])
    body = [
        [data, *(f"{min(r):.1f}× – {max(r):.1f}×" for r in by_direction.values())]
        for data, by_direction in ratios.items()
    ]
    return markdown(["scores", "forward", "forward + backward"], body)


def relaxation_sums() -> str:
    """Distance of the sums from k for normal and offset scores."""
    body = [
        [f"{row['data']}, {row['dtype']}, n = {row['n']}", str(row["k"])]
        + [f"{row[who]['mean']:.1g}" for who in ("reference", "ours", "rounded")]
        for row in read("relaxations")["sum_errors"]
        if row["share"] == 0.3
        if row["data"] == "normal" or (row["data"], row["dtype"]) == ("offset 8192", "fp32")
    ]
    return markdown(["scores", "k", "reference", "ours", "ours, rounded"], body)


def relaxation_members() -> str:
    """Milliseconds and memory of every member."""
    rows = read("relaxations")["members"]
    sizes = sorted({row["n"] for row in rows})
    by_member: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["n"]):
        times = " / ".join(f"{row['ms'][direction][1]:.2f}" for direction in ("forward", "both"))
        by_member.setdefault(row["member"], []).append(times)
    for row in rows:
        if row["n"] == sizes[-1]:
            by_member[row["member"]].append(f"{row['floats_per_score']:.1f}")
    header = [
        "ms forward / forward + backward",
        *(f"n = {n}" for n in sizes),
        f"floats per score, n = {sizes[-1]}",
    ]
    return markdown(header, [[name, *cells] for name, cells in by_member.items()])


def relaxation_entmax() -> str:
    """Ours against the functions of entmax."""
    cells: dict[str, list[str]] = {}
    for row in read("relaxations")["against_entmax"]:
        cells.setdefault(f"`{row['theirs']}`, n = {row['n']}", []).append(spread(row["ratio"]))
    body = [[what, *ratios] for what, ratios in cells.items()]
    return markdown(["times faster than entmax's", "forward", "forward + backward"], body)


def relaxation_perturbed() -> str:
    """Time and memory of perturbed Top-K."""
    body = []
    for row in read("relaxations")["perturbed"]:
        theirs = f"{row['ms']['one-hot'][1]:.0f} ms" if "one-hot" in row["ms"] else "not run"
        memory = f"{row['MB']['one-hot']:.0f} MB" if "one-hot" in row["MB"] else "–"
        vectors = f"{row['one_hot_vectors_MB']:.0f} MB"
        ours = [f"{row['ms']['ours'][1]:.1f} ms", f"{row['MB']['ours']:.1f} MB"]
        body.append([f"n = {row['n']}, k = {row['k']}", *ours, theirs, memory, vectors])
    header = ["100 samples, forward + backward", "ours", "peak", "one-hot", "peak", "its vectors alone"]
    return markdown(header, body)


def relaxation_elsewhere() -> str:
    """What difficult inputs give, there and here."""
    rows = read("relaxations")["elsewhere"]
    body = [[f"{row['what']}: {row['input']}", row["theirs"], row["ours"]] for row in rows]
    return markdown(["input", "there", "here"], body)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        selection,
        gains,
        ablation,
        decode,
        choose.choose,
        choose.choose_recipes,
        choose.choose_cost,
        routing.routing,
        routing.routing_fates,
        routing.routing_pairs,
        routing.routing_cost,
        *speed.TABLES,
        *limits.TABLES,
        routing.retention,
        relaxation_bars,
        relaxation_speed,
        relaxation_awkward,
        relaxation_sums,
        relaxation_members,
        relaxation_entmax,
        relaxation_perturbed,
        relaxation_elsewhere,
    )
}


def render(text: str) -> str:
    """``text`` with every table made anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        new = render(text)
        if new != text and check:
            sys.exit(f"{page}: a table is out of date; run python benchmarks/tables.py")
        path.write_text(new)


if __name__ == "__main__":
    main()
