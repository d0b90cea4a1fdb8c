"""Write the tables of README from the committed result files.

    python benchmarks/tables.py          # rewrite
    python benchmarks/tables.py --check  # fail if a table is out of date

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a function below.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ("README.md",)
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, first column left, the others right."""
    header = list(header)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
    keeps = result["settings"]["keeps"]
    body = [
        [row["gate"], row["curriculum"], row["relaxation"]]
        + [f"{100 * row['accuracy'][str(keep)]:.1f}" for keep in keeps]
        + [f"{row['soft_hard_gap']:.3f}"]
        for row in result["rows"]
    ]
    header = ["gate", "curriculum", "relaxation", *(f"{100 * k:g} %" for k in keeps), "soft–hard gap"]
    return markdown(header, body)


def decode() -> str:
    """Decoding speed, attached over unattached."""
    body = [
        [str(r["batch"]), f"{100 * r['keep']:g} %", f"{r['speed_ratio']:.2f}×"]
        for r in read("decode")["rows"]
    ]
    return markdown(["batch", "keep", "tokens/s against unattached"], body)


TABLES: dict[str, Callable[[], str]] = {f.__name__: f for f in (selection, gains, ablation, decode)}


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
