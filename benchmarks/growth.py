"""How the cost of choosing tokens grows: with their number, with the layers that route and with the batch.

    python benchmarks/growth.py --out benchmarks/results/growth.json
    python benchmarks/draw_growth.py

Selection: one image of N features of width 512, float32, hard choices at keep = 20 %, without gradients.
What each method should cost is in ``METHODS``: the learned scorer and the relaxation are linear in N; what
compares tokens with each other (DivPrune, contextual merging, attention maps) is quadratic in time where k
is a share of N, and linear in memory because the map is never whole. The exponent is the slope of log cost
over log N, fitted over the upper sizes; memory is the most that a call holds at once beside its input.
Routing: a model of width 256 with 576 visual tokens, keep = 1/9, rank 32; *routing* is the routed prefill
minus one that has as many tokens from the start. Contenders run in turn; processor time, one thread,
medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from interleaved import held_bytes, in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from routing_cost import build, first_feature, prompt, running, seconds

from tokenops import Pipeline, Prune, recipes
from tokenops.integrations import low_rank_factors
from tokenops.routers import LowRankAttention
from tokenops.selectors import Diverse, TopK
from tokenops.selectors.mergers import Contextual
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer

SIZES, UPPER = tuple(2**i for i in range(8, 15)), 2048
WIDTH, KEEP, RANK = 512, 0.2, 64
# name -> what time and memory should grow like
METHODS = {
    "LearnedScorer + TopK": (1, 1),
    "soft Top-K (sigmoid)": (1, 1),
    "low-rank scores": (2, 1),
    "contextual merge": (2, 1),
    "DivPrune": (2, 1),
}
LAYERS, BATCHES = (2, 4, 8, 16, 32), (1, 2, 4, 8, 16)
SMOKE = {"sizes": (32, 64, 128), "upper": 32, "width": 16, "layers": (1, 2), "batches": (1, 2)}
MODEL = {"width": 256, "ffn": 688, "heads": 4, "side": 24}
SMALL = {"width": 32, "ffn": 48, "heads": 2, "side": 6}


def selections(n: int, width: int) -> dict[str, Callable[[], Any]]:
    """Calls that choose among n tokens, by the names of METHODS."""
    x = torch.randn(1, n, width)
    scores, k, visual = x[..., 0].contiguous(), max(1, int(KEEP * n)), torch.ones(1, n, dtype=torch.bool)
    visual[:, -max(1, n // 16) :] = False  # the text behind the image
    learned, diverse = TopK(LearnedScorer(width), KEEP), Diverse(KEEP)
    dominant, merge = TopK(first_feature, KEEP * 54 / 64)(x), Contextual(KEEP)
    low = LowRankAttention(width, min(RANK, width), heads=1, causal=False)
    calls = (
        lambda: learned(x),
        lambda: soft_topk(scores, k),
        lambda: low(x, visual=visual),
        lambda: merge(x, dominant),
        lambda: diverse(x),
    )
    return dict(zip(METHODS, calls, strict=True))


def selection_rows(sizes: tuple[int, ...], width: int) -> list[dict[str, Any]]:
    """Milliseconds and MB per method and size."""
    rows = []
    for n in sizes:
        calls = selections(n, width)
        timed = {name: lambda call=call: 1e3 * seconds(call) for name, call in calls.items()}
        took = in_turn(timed, max(2, min(9, 16384 // n)))
        for name, call in calls.items():
            rows.append({"method": name, "n": n, "ms": spread(took[name]), "MB": held_bytes(call) / 1e6})
    return rows


def routing_row(layers: int, batch: int, size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Milliseconds of a prefill unattached, pruned, routed, and what routing adds to pruning."""
    model, inputs = build(layers, **size), prompt(batch, size["side"])
    pipelines: dict[str, Pipeline | None] = {
        "unattached": None,
        "pruned": Pipeline(after_projector=Prune(TopK(first_feature, 1 / 9))),
        "routed": recipes.alvts(low_rank_factors(model, min(32, size["width"]), svd="logits"), 1 / 9),
    }

    def timed(pipeline: Pipeline | None) -> float:
        with running(model, pipeline):
            return 1e3 * seconds(lambda: model(**inputs, use_cache=False, logits_to_keep=1))

    calls = {name: lambda pipeline=pipeline: timed(pipeline) for name, pipeline in pipelines.items()}
    took = in_turn(calls, rounds)
    row = {"layers": layers, "batch": batch} | {name: spread(t) for name, t in took.items()}
    return row | {"routing": spread(took["routed"] - took["pruned"])}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of log cost over log size."""
    return round(float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0]), 2)


def exponents(result: dict[str, Any], upper: int) -> list[dict[str, Any]]:
    """Fitted over the upper sizes, beside what they should be."""
    found: list[dict[str, Any]] = []
    for name, (slope_time, slope_memory) in METHODS.items():
        rows = [r for r in result["selection"] if r["method"] == name and r["n"] >= upper]
        at = [r["n"] for r in rows]
        spent, held = exponent(at, [r["ms"][1] for r in rows]), exponent(at, [r["MB"] for r in rows])
        found.append({"what": name, "over": "tokens", "time": spent, "time_law": slope_time})
        found[-1] |= {"memory": held, "memory_law": slope_memory}
    for over in ("layers", "batch"):
        rows = result["routing_" + over]
        for what in ("unattached", "routed", "routing"):
            spent = exponent([r[over] for r in rows], [r[what][1] for r in rows])
            found.append({"what": what, "over": over, "time": spent, "time_law": 1})
    return found


def measure(smoke: bool) -> dict[str, Any]:
    """All of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    sizes, upper, width = (SMOKE[k] for k in ("sizes", "upper", "width")) if smoke else (SIZES, UPPER, WIDTH)
    layers, batches = (SMOKE["layers"], SMOKE["batches"]) if smoke else (LAYERS, BATCHES)
    model, rounds = (SMALL, 1) if smoke else (MODEL, 5)
    with torch.no_grad():
        result: dict[str, Any] = {
            "selection": selection_rows(sizes, width),
            "routing_layers": [routing_row(n, 1, model, rounds) for n in layers],
            "routing_batch": [routing_row(2 if smoke else 8, b, model, rounds) for b in batches],
        }
    result["exponents"] = exponents(result, upper)
    result["settings"] = {
        "selection": f"width {width}, keep {KEEP}, rank {min(RANK, width)}, exponents from N = {upper} on",
        "routing": f"width {model['width']}, SwiGLU {model['ffn']}, {model['side'] ** 2} tokens, keep 1/9",
        "dtype": "float32",
        **machine(),
        "transformers": transformers.__version__,
        "took_s": round(time.perf_counter() - started, 1),
    }
    return result


def show(result: dict[str, Any]) -> None:
    """Tables on the terminal."""
    table = Table("method", "N", "ms", "MB")
    for r in result["selection"]:
        table.add_row(r["method"], str(r["n"]), f"{r['ms'][1]:.3g}", f"{r['MB']:.3g}")
    routing = Table("layers", "batch", "unattached ms", "pruned ms", "routed ms", "routing ms")
    for r in result["routing_layers"] + result["routing_batch"]:
        cells = (f"{r[k][1]:.1f}" for k in ("unattached", "pruned", "routed", "routing"))
        routing.add_row(str(r["layers"]), str(r["batch"]), *cells)
    fitted = Table("exponent of", "over", "time", "law", "memory", "law")
    for r in result["exponents"]:
        cells = (r["time"], r["time_law"], r.get("memory", ""), r.get("memory_law", ""))
        fitted.add_row(r["what"], r["over"], *map(str, cells))
    Console().print(table, routing, fitted, f"took {result['settings']['took_s']} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few tokens, a tiny model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    result = measure(options.smoke)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
