"""Soft Top-K against 64 bisections, entmax's maps and one another, interleaved in one run.

    python benchmarks/relaxations.py --out benchmarks/results/relaxations.json

Every repetition draws fresh scores (8 rows) and gives all contenders the same ones, in rotating order, on one
thread. A ratio is the other's time over ours within a repetition; quartiles and median are reported.
``settings.missing`` names what was left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import Mask, interleave, machine, save, sets_for, spread
from relaxation_failures import failures
from relaxation_members import DIRECTIONS, ROWS, against_entmax, perturbed, side_by_side
from relaxation_reference import bisection_topk
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tokenops.selectors import relaxations

SHARES = (0.1, 0.3)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DATA: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda n: torch.randn(ROWS, n),
    "normal × 100": lambda n: 100 * torch.randn(ROWS, n),
    "Cauchy": lambda n: torch.empty(ROWS, n).cauchy_(),
    "two values": lambda n: 20.0 * torch.randint(0, 2, (ROWS, n)),
    "offset 8192": lambda n: torch.randn(ROWS, n) + 8192,
    "ties": lambda n: torch.randn(ROWS, n).mul(4).round().div(4),
}
Rows = list[dict[str, Any]]


def compiled(k: int) -> Mask:
    """The sigmoid member at k through inductor, without graph breaks, for one shape and one direction."""
    torch._dynamo.reset()
    return torch.compile(lambda x: relaxations.sigmoid_topk(x, k), fullgraph=True, dynamic=False)


def against_bisection(options: argparse.Namespace) -> Rows:
    """Times and ratios of the sigmoid member for every dtype, size, share, data and direction."""
    cells = [(dtype, n, share) for dtype in DTYPES for n in options.sizes for share in SHARES]
    rows = []
    for dtype, n, share in track(cells, "against 64 bisections"):
        k = int(n * share)
        ours = partial(relaxations.sigmoid_topk, k=k)
        contenders: dict[str, Mask] = {"reference": partial(bisection_topk, k=k), "eager": ours}
        for direction, backward in DIRECTIONS.items():
            if n <= options.compile:
                contenders["compiled"] = compiled(k)
            for data in DATA:
                draw = partial(scores, data, n, dtype)
                times = interleave(contenders, draw, sets_for(n), options.repeats, backward)
                row: dict[str, Any] = {"dtype": dtype, "n": n, "share": share, "data": data}
                row |= {"direction": direction, "ms": {name: spread(t) for name, t in times.items()}}
                reference = times.pop("reference")
                row["ratio"] = {name: spread(reference / t) for name, t in times.items()}
                rows.append(row)
    return rows


def scores(data: str, n: int, dtype: str) -> Tensor:
    """Fresh scores of one kind."""
    return DATA[data](n).to(DTYPES[dtype])


def sum_errors(options: argparse.Namespace) -> Rows:
    """Mean and largest |Σp - k| over fresh rows, p summed in float64.

    For bf16 scores the reference returns bf16, ours float32; "rounded" is ours in bf16.
    """
    cells = [(d, n, s, data) for d in DTYPES for n in options.sizes for s in SHARES for data in DATA]
    rows = []
    for dtype, n, share, data in cells:
        k = int(n * share)
        x = torch.cat([scores(data, n, dtype) for _ in range(options.repeats)])
        row: dict[str, Any] = {"dtype": dtype, "n": n, "share": share, "k": k, "data": data}
        ours = relaxations.sigmoid_topk(x, k)
        for name, p in (("reference", bisection_topk(x, k)), ("ours", ours), ("rounded", ours.to(x.dtype))):
            off = (p.double().sum(1) - k).abs()
            row[name] = {"mean": float(f"{off.mean():.3g}"), "most": float(f"{off.max():.3g}")}
        rows.append(row)
    return rows


def bar(what: str, wanted: float, ratios: Iterable[float]) -> dict[str, Any]:
    """What was asked for beside the least and the median of the cells."""
    values = list(ratios)
    least, median = (float(f"{f(values):.3g}") for f in (min, np.median))
    return {"what": what, "wanted": wanted, "least": least, "median": median, "cells": len(values)}


def bars(result: dict[str, Rows]) -> Rows:
    """The bars the project sets itself."""

    def cells(mode: str, direction: str, most: int = 2**30) -> list[float]:
        return [
            row["ratio"][mode][1]
            for row in result["against_bisection"]
            if row["direction"] == direction and row["data"] == "normal" and mode in row["ratio"]
            if row["n"] <= most
        ]

    def sums(dtype: str) -> list[float]:
        rows = [r for r in result["sum_errors"] if r["dtype"] == dtype and r["data"] == "normal"]
        return [r["reference"]["mean"] / max(r["ours"]["mean"], 1e-12) for r in rows]

    awkward = [r["ratio"]["eager"][1] for r in result["against_bisection"] if r["data"] != "normal"]
    budget = [r["ratio"][1] for r in result["against_entmax"] if r["theirs"] == "budget_bisect"]
    found = (
        ("64 bisections, forward", 10, cells("eager", "forward")),
        ("64 bisections, forward + backward", 9, cells("eager", "both")),
        ("64 bisections, compiled, n ≤ 2048, forward", 12, cells("compiled", "forward", 2048)),
        ("64 bisections, compiled, n ≤ 2048, forward + backward", 12, cells("compiled", "both", 2048)),
        ("64 bisections, awkward data", 2, awkward),
        ("sum error of 64 bisections, fp32", 5, sums("fp32")),
        ("sum error of 64 bisections, bf16", 15, sums("bf16")),
        ("entmax's budget_bisect, capped simplex", 2, budget),
    )
    return [bar(what, wanted, ratios) for what, wanted, ratios in found if ratios]


def show(result: dict[str, Any]) -> None:
    """Print the bars; ``docs/relaxations.md`` shows the rest."""
    table = Table(title="times faster than, or smaller than")
    for column in ("what", "wanted", "least", "median", "cells"):
        table.add_column(column)
    for line in result["bars"]:
        table.add_row(*(str(value) for value in line.values()))
    Console(width=110).print(table)
    for what in result["settings"]["missing"]:
        print(f"not measured: {what}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is saved."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    settings, missing = machine(), []
    settings |= {"rows": ROWS, "repeats": options.repeats, "seed": options.seed}
    settings |= {"compiled_up_to": options.compile, "load": [os.getloadavg()[0]]}
    result: dict[str, Any] = {
        "against_bisection": against_bisection(options),
        "sum_errors": sum_errors(options),
        "members": side_by_side(options),
        "perturbed": perturbed(options),
        "against_entmax": [],
        "elsewhere": failures(),
    }
    if not options.compile:
        missing.append("torch.compile")
    try:
        result["against_entmax"] = against_entmax(options)
        settings["entmax"] = metadata.version("entmax")
    except ImportError:
        missing.append("entmax (pip install entmax)")
    settings["load"].append(os.getloadavg()[0])
    return {"settings": settings | {"missing": missing}, "bars": bars(result), **result}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 2048, 16384])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", type=int, default=2048, help="largest size to compile; 0 for none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
