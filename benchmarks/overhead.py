"""What attaching costs where nothing is dropped: keep = 1.0, with the shortcut and without it.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json

The model of ``routing_cost.py``: 8 layers of width 1,024 with a SwiGLU of 2,752, 1,296 visual and 64 text
tokens, prefill without a cache, logits of the last token. Where nothing is dropped, the original call is
made untouched: that is the shortcut. One token less, 1,295 of 1,296, and there is none: everything is
scored, gathered, run with explicit positions and masks, and put back; for routes in every layer. What that
token saves is below 0.1 %. The model is measured twice unattached: the difference is the noise. Contenders
run in turn; processor seconds, one thread, medians of ratios within rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from routing_cost import FFN, HEADS, LAYERS, SIDE, TEXT, WIDTH, build, first_feature, prompt, running, seconds
from torch import Tensor

from tokenops import Pipeline, recipes
from tokenops.budget import Keep
from tokenops.routers import Route
from tokenops.selectors.scorers import LearnedScorer

SMOKE = {"layers": 2, "width": 32, "ffn": 48, "heads": 2, "side": 6}
FULL = {"layers": LAYERS, "width": WIDTH, "ffn": FFN, "heads": HEADS, "side": SIDE}
BARS = {"shortcut": 0.01, "no shortcut": 0.05}


def contenders(width: int, visual: int) -> dict[str, Pipeline | None]:
    """Name -> pipeline."""

    def prune(keep: Keep) -> Pipeline:
        return recipes.visionselector(LearnedScorer(width), keep)

    def route(keep: Keep) -> Pipeline:
        return Pipeline(layers=Route(first_feature, keep))

    return {
        "unattached": None,
        "unattached again": None,
        "prune, shortcut": prune(1.0),
        "route, shortcut": route(1.0),
        "prune, no shortcut": prune(visual - 1),
        "route, no shortcut": route(visual - 1),
    }


def prefill(model: Any, inputs: dict[str, Tensor], pipeline: Pipeline | None) -> tuple[float, Tensor]:
    """Seconds and logits."""
    found: list[Tensor] = []

    def call() -> None:
        found.append(model(**inputs, use_cache=False, logits_to_keep=1).logits)

    with running(model, pipeline), torch.no_grad():
        return seconds(call), found[0]


def measure(size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Times over unattached, and how far the logits are from unattached ones."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    model, inputs, runs = (
        build(**size),
        prompt(side=size["side"]),
        contenders(size["width"], size["side"] ** 2),
    )
    plain = prefill(model, inputs, None)[1]
    rows = []
    calls: dict[str, Callable[[], float]] = {
        name: lambda run=run: prefill(model, inputs, run)[0] for name, run in runs.items()
    }
    times = in_turn(calls, rounds)
    for name, run in runs.items():
        apart = (prefill(model, inputs, run)[1] - plain).abs().max().item()
        over = spread(times[name] / times["unattached"] - 1)
        row: dict[str, Any] = {
            "name": name,
            "seconds": spread(times[name]),
            "over": over,
            "logits_apart": apart,
        }
        bar = next((b for what, b in BARS.items() if name.endswith(", " + what)), None)
        rows.append(row if bar is None else row | {"bar": bar, "met": over[1] <= bar})
    what = f"{size['layers']} layers, width {size['width']}, SwiGLU {size['ffn']}"
    settings = {
        "model": f"{what}, {size['side'] ** 2} visual + {TEXT} text tokens",
        "dtype": "float32",
        "rounds": rounds,
        **machine(),
        "transformers": transformers.__version__,
        "took_s": round(time.perf_counter() - started, 1),
    }
    return {"rows": rows, "settings": settings}


def show(result: dict[str, Any]) -> None:
    """A table on the terminal."""
    table = Table("keep = 1.0", "seconds", "over unattached", "quartiles", "logits apart", "bar")
    for row in result["rows"]:
        low, middle, high = row["over"]
        bar = f"≤ {row['bar']:.0%} {'met' if row['met'] else 'MISSED'}" if "bar" in row else ""
        cells = f"{row['seconds'][1]:.3f}", f"{middle:+.2%}", f"[{low:+.2%}, {high:+.2%}]"
        table.add_row(row["name"], *cells, f"{row['logits_apart']:.2g}", bar)
    Console().print(table, f"took {result['settings']['took_s']} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    result = measure(SMOKE, 1) if options.smoke else measure(FULL, options.rounds)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
