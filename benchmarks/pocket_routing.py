"""Held-out accuracy of layer routing on the pocket VLM, with paired bootstrap intervals.

    python benchmarks/pocket_routing.py --scenes 300 --out benchmarks/results/pocket_routing.json

Every method answers the same questions. ``mean`` is the number of visual tokens that run in a layer, averaged
over layers and images: methods compare at equal cost where it is equal.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pocket_selection import answers, batches, interval
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokenops
from tokenops import Pipeline, pocket, recipes
from tokenops.integrations import low_rank_factors
from tokenops.pocket.routing import alvts, layer_counts, score_mass
from tokenops.routers import Route, allocate, from_layer, per_layer
from tokenops.selectors.scorers import last_attention

N, LAYERS = 144, 4
COUNTS = (72, 43, 29, 16, 14, 7)
STATIC = 2  # the layer from which FastV and its twins run fewer tokens


def methods(model: Any) -> Iterator[tuple[str, int, Pipeline]]:
    """(name, budget, pipeline); the budget is the count each layer, or each layer from STATIC on, runs."""
    rank = next(iter(alvts().stages["layers"].scorer.values())).rank
    svd = low_rank_factors(model, rank)
    exact = low_rank_factors(model, model.lm_head.in_features, softmax="head")
    ours = alvts().stages["layers"].scorer
    mass = torch.tensor(score_mass())
    for k in COUNTS:
        yield "ALVTS", k, recipes.alvts(ours, k)
        yield "ALVTS, not calibrated", k, recipes.alvts(svd, k)
        yield "ALVTS, heads apart", k, alvts(k, softmax="head")
        yield "ALVTS, teacher scores", k, recipes.alvts(exact, k)
        yield "ALVTS, ratios by score mass", k, recipes.alvts(ours, allocate(mass, k / N, floor=0.02))
        yield "ALVTS, ratios by gain", k, recipes.alvts(ours, per_layer(layer_counts("alvts")[k]))
        yield "FastV (exit)", k, recipes.fastv(k, layer=STATIC)
        yield "FastV's choice, skip", k, Pipeline(layers=Route(last_attention, from_layer(STATIC, k)))
        yield "ALVTS from layer 2, exit", k, Pipeline(layers=Route(ours, from_layer(STATIC, k), fate="exit"))
        yield "ALVTS from layer 2", k, recipes.alvts(ours, from_layer(STATIC, k))
        mean = round((STATIC * N + (LAYERS - STATIC) * k) / LAYERS)
        yield "ALVTS at FastV's mean", k, recipes.alvts(ours, mean)
        yield "VisionSelector", k, pocket.visionselector(k)
        for factor in (1.5, 2.0, 3.0):
            if factor * k < N:
                before = pocket.visionselector(round(factor * k))
                yield f"hybrid x{factor:g}", k, before | recipes.alvts(ours, k)
        if k in layer_counts("hybrid"):
            routed = recipes.alvts(ours, per_layer(layer_counts("hybrid")[k]))
            yield "hybrid x2, ratios by gain", k, pocket.visionselector(2 * k) | routed
        yield "hybrid DivPrune x2", k, recipes.divprune(2 * k) | recipes.alvts(ours, k)
        yield "VisionZip", k, recipes.visionzip(k)
        yield "DivPrune", k, recipes.divprune(k)
        yield "CLS attention", k, recipes.cls_attention(k)
        yield "uniform", k, recipes.uniform(k)
        yield "random", k, recipes.random(k, seed=None)


def collect(
    scenes: list[pocket.Scene], only: list[str]
) -> tuple[np.ndarray, list[dict[str, Any]], list[np.ndarray]]:
    """Right answers of the model alone, and a row and the right answers of each method and budget."""
    model, processor = pocket.load()
    full = answers(model, processor, scenes, None)
    rows, hits = [], []
    chosen = [method for method in methods(model) if not only or method[0] in only]
    for name, k, pipeline in track(chosen, "methods"):
        torch.manual_seed(0)
        with tokenops.attach(model, pipeline) as handle:
            right = answers(model, processor, scenes, None)
            mean = float(np.mean(handle.tokens_per_layer))
        rows.append({"method": name, "budget": k, "mean": round(mean, 1), "accuracy": round(right.mean(), 4)})
        hits.append(right)
    return full, rows, hits


def compare(
    rows: list[dict[str, Any]], hits: list[np.ndarray], owner: np.ndarray, pairs: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Paired differences of two methods at every budget."""
    by = {(row["method"], row["budget"]): right for row, right in zip(rows, hits, strict=True)}
    out = []
    for one, other in pairs:
        for k in COUNTS:
            if (one, k) in by and (other, k) in by:
                gain = by[one, k].astype(float) - by[other, k]
                out.append({"method": one, "against": other, "budget": k, "gain": round(gain.mean(), 4)})
                out[-1]["interval"] = [round(v, 4) for v in interval(gain, owner)]
    return out


PAIRS = [
    ("ALVTS", "ALVTS, not calibrated"),
    ("ALVTS, heads apart", "ALVTS"),
    ("ALVTS, ratios by gain", "ALVTS"),
    ("ALVTS, ratios by score mass", "ALVTS"),
    ("FastV's choice, skip", "FastV (exit)"),
    ("ALVTS from layer 2", "ALVTS from layer 2, exit"),
    ("ALVTS from layer 2", "FastV (exit)"),
    ("ALVTS at FastV's mean", "FastV (exit)"),
    *((f"hybrid x{f}", rival) for f in ("1.5", "2", "3") for rival in ("ALVTS", "VisionSelector")),
    ("hybrid DivPrune x2", "DivPrune"),
    ("hybrid DivPrune x2", "ALVTS"),
    *(("hybrid x2, ratios by gain", rival) for rival in ("hybrid x2", "ALVTS", "VisionSelector")),
]


def merge(result: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the rows and pairs that were not measured again before those that were."""
    same = ("questions", "full", "settings")
    if any(result[key] != before[key] for key in same):
        raise SystemExit("the file was measured with other scenes, on another machine or version")
    now = {(row["method"], row["budget"]) for row in result["rows"]}
    result["rows"] = [r for r in before["rows"] if (r["method"], r["budget"]) not in now] + result["rows"]
    new = {(p["method"], p["against"], p["budget"]) for p in result["pairs"]}
    kept = [p for p in before["pairs"] if (p["method"], p["against"], p["budget"]) not in new]
    result["pairs"] = kept + result["pairs"]


def show(result: dict[str, Any]) -> None:
    """Print both tables."""
    table = Table(title=f"full {result['full']:.3f}, {result['questions']} held-out questions")
    for column in ("method", "budget", "mean tokens per layer", "accuracy", "minus full [95 %]"):
        table.add_column(column)
    for row in result["rows"]:
        low, high = row["interval"]
        loss = f"{row['minus_full']:+.3f} [{low:+.3f}, {high:+.3f}]"
        table.add_row(row["method"], str(row["budget"]), str(row["mean"]), f"{row['accuracy']:.3f}", loss)
    console = Console(width=120)
    console.print(table)
    for row in result["pairs"]:
        low, high = row["interval"]
        told = f"{row['method']} - {row['against']} = {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        console.print(f"{row['budget']:3d}: {told}", highlight=False)


def main() -> None:
    """Evaluate and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--only", nargs="+", default=[], help="measure these methods, keep the other rows of --out"
    )
    options = parser.parse_args()
    scenes = pocket.scenes(options.scenes, "heldout", seed=options.seed)
    full, rows, hits = collect(scenes, options.only)
    owner = np.array([i for pairs in batches(scenes) for i, _ in pairs])
    for row, right in zip(rows, hits, strict=True):
        loss = right.astype(float) - full
        row["minus_full"] = round(loss.mean(), 4)
        row["interval"] = [round(v, 4) for v in interval(loss, owner)]
    result = {"rows": rows, "pairs": compare(rows, hits, owner, PAIRS), "questions": len(full)}
    result["full"] = round(float(full.mean()), 4)
    result["settings"] = {
        "scenes": options.scenes,
        "seed": options.seed,
        "split": "heldout",
        "torch": torch.__version__,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
    }
    if options.only:
        merge(result, json.loads(options.out.read_text()))
    show(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
