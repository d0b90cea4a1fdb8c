"""Routing and pruning inside a vision transformer of timm: time against counted FLOPs.

    python benchmarks/timm_routing.py --out benchmarks/results/timm_routing.json

``vit_small_patch16_224`` with random weights, 224 pixels, 12 blocks, float32. "skip": in every block the
patches with the longest vectors run; "exit": from block 3 on, those that the CLS token looked at in block 2
are left; "prune": an even lattice of patches is left before the first block. The model is measured twice
unattached (the difference is the noise) and with keep = 1.0. Contenders run in turn; processor seconds, one
thread, medians of ratios within rounds. FLOPs are counted by torch in the same calls, with the attention
written out: patch embedding and head are in them, scoring, gathering and putting back are not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokenops
from tokenops import Pipeline, recipes
from tokenops.routers import Route, from_layer
from tokenops.selectors.scorers import cls_attention, feature_norm

KEEPS = (0.7, 0.5, 0.3)
START = 3
SMOKE = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "depth": 4, "num_classes": 5}


def contenders() -> Iterator[tuple[str, float, Pipeline | None]]:
    """(method, keep, pipeline)."""
    yield "unattached", 1.0, None
    yield "unattached again", 1.0, None
    yield "skip", 1.0, Pipeline(layers=Route(feature_norm, 1.0))
    for keep in KEEPS:
        yield "skip", keep, Pipeline(layers=Route(feature_norm, keep))
        yield "exit", keep, Pipeline(layers=Route(cls_attention, from_layer(START, keep), fate="exit"))
        yield "prune", keep, recipes.uniform(keep)


def flops(vit: Any, images: Tensor, pipeline: Pipeline | None) -> tuple[int, float]:
    """Of one forward, and patches per block."""
    before = [block.attn.fused_attn for block in vit.blocks]
    for block in vit.blocks:
        block.attn.fused_attn = False
    with nullcontext() if pipeline is None else tokenops.attach(vit, pipeline) as handle:
        with FlopCounterMode(display=False) as counter:
            vit(images)
        tokens = [vit.patch_embed.num_patches] if handle is None else handle.tokens_per_layer
    for block, fused in zip(vit.blocks, before, strict=True):
        block.attn.fused_attn = fused
    return counter.get_total_flops(), sum(tokens) / len(tokens)


def timed(vit: Any, images: Tensor, pipeline: Pipeline | None) -> Callable[[], float]:
    """Processor seconds of one forward; attaching is not part of it."""

    def call() -> float:
        with nullcontext() if pipeline is None else tokenops.attach(vit, pipeline):
            start = time.process_time()
            vit(images)
            return time.process_time() - start

    return call


@torch.inference_mode()
def measure(batch: int, rounds: int, smoke: bool) -> dict[str, Any]:
    """Times, ratios and counted ratios of all contenders."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vit = timm.create_model("vit_small_patch16_224", pretrained=False, **(SMOKE if smoke else {})).eval()
    images = torch.randn(batch, 3, *vit.patch_embed.img_size)
    runs = list(contenders())
    names = [f"{method} {keep}" for method, keep, _ in runs]
    counted = [flops(vit, images, pipeline) for *_, pipeline in runs]
    calls = {name: timed(vit, images, run[2]) for name, run in zip(names, runs, strict=True)}
    took = in_turn(calls, rounds)
    rows = []
    for (method, keep, _), name, (count, patches) in zip(runs, names, counted, strict=True):
        ratio = took[names[0]] / took[name]
        limit = counted[0][0] / count
        row = {"method": method, "keep": keep, "patches": round(patches, 1)}
        row |= {"ms": round(1e3 * float(np.median(took[name])), 2), "speedup": spread(ratio)}
        row |= {"counted": round(limit, 3), "share": round(float(np.median(ratio)) / limit, 3)}
        rows.append(row)
    settings = {"model": "vit_small_patch16_224", "batch": batch, "rounds": rounds, "smoke": smoke}
    settings |= {"size": list(vit.patch_embed.img_size), "blocks": len(vit.blocks), "timm": timm.__version__}
    return {"rows": rows, "settings": settings | machine()}


def show(result: dict[str, Any]) -> None:
    """A table on the terminal."""
    table = Table("method", "keep", "patches per block", "ms", "times faster", "counted FLOPs", "share")
    for r in result["rows"]:
        low, middle, high = r["speedup"]
        cells = (r["keep"], r["patches"], r["ms"], f"{middle:.3f} ({low:.3f}–{high:.3f})", r["counted"])
        table.add_row(r["method"], *map(str, cells), f"{r['share']:.0%}")
    Console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options.batch, options.rounds, options.smoke)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
