"""Prefill with routed layers, eager and compiled, against the same model without routing, eager and compiled.

    python benchmarks/compiled_routing.py --out benchmarks/results/compiled_routing.json

A LLaVA-shaped model with random weights: 8 layers, few visual tokens and 64 words, where launching kernels
costs about as much as computing. Every layer runs 1/9 of the visual tokens, those that a rank-32 map chooses.
The language model alone is compiled, in place; the vision tower (two narrow layers) stays eager and is timed
with it. All contenders run in turn in one process; on a CPU processor time counts, on CUDA the time until the
device is done, and ``reduce-overhead`` (CUDA graphs) runs too. A ratio a / b: how many times as fast a is.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenops
from tokenops import recipes
from tokenops.routers import LowRankAttention

IMAGE, PATCH, WORDS, RANK, KEEP = 999, 14, 64, 32, 1 / 9
SIZES = ((144, 256), (144, 1024), (576, 256), (576, 1024))


def build(n: int, width: int, layers: int, device: torch.device) -> Any:
    """A model for images of n tokens; heads of 64, a gated FFN of 2.6875 widths."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PATCH * round(n**0.5),
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=1000,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_token_id=IMAGE
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = LlavaForConditionalGeneration(config)
    return model.eval().to(device, dtype)


def prompt(n: int, seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """8 words, an image and the other words; another seed, other words and another image."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 900, (WORDS,), generator=g)
    ids = torch.cat([words[:8], torch.full((n,), IMAGE), words[8:]])[None].to(device)
    side = PATCH * round(n**0.5)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pixels = torch.randn(1, 3, side, side, generator=g).to(device, dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def alvts(width: int, layers: int, device: torch.device) -> tokenops.Pipeline:
    """Random maps: what a choice costs does not depend on what it chooses."""
    maps = {i: LowRankAttention(width, RANK, heads=width // 64, causal=False) for i in range(layers)}
    return recipes.alvts(maps, KEEP).to(device)


def contender(model: Any, calls: Sequence[dict[str, torch.Tensor]]) -> Callable[[], float]:
    """Milliseconds of one prefill, mean over the calls."""
    cuda = calls[0]["input_ids"].is_cuda

    def run() -> float:
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        start = clock()
        for inputs in calls:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                model(**inputs, use_cache=True, logits_to_keep=1)
        if cuda:
            torch.cuda.synchronize()
        return 1e3 * (clock() - start) / len(calls)

    return run


def measure(n: int, width: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: every contender in turn, and what the first call of the compiled ones took."""
    device = torch.device(options.device)
    modes: dict[str, dict[str, Any]] = {"compiled": {"backend": options.backend}}
    if device.type == "cuda":
        modes["graphs"] = {"mode": "reduce-overhead"}
    plain = build(n, width, options.layers, device)
    calls = [prompt(n, seed, device) for seed in range(options.calls)]
    run: dict[str, Callable[[], float]] = {}
    first: dict[str, float] = {}
    torch._dynamo.reset()
    for way, pipeline in (("unrouted", None), ("routed", alvts(width, options.layers, device))):
        for mode in ("eager", *modes):
            model = copy.deepcopy(plain)
            if pipeline is not None:
                tokenops.attach(model, pipeline)
            if mode in modes:
                model.model.language_model.compile(dynamic=False, **modes[mode])
                start = time.perf_counter()
                contender(model, calls[:1])()
                first[f"{way} {mode}"] = round(time.perf_counter() - start, 1)
            run[f"{way} {mode}"] = contender(model, calls)
    with torch._dynamo.config.patch(error_on_recompile=True):
        took = in_turn(run, options.rounds)
    ms = {name: spread(values) for name, values in took.items()}
    ratios = {
        f"{a} / {b}": round(float(np.median(took[b] / took[a])), 3)
        for a, b in [
            *((f"{way} {mode}", f"{way} eager") for way in ("unrouted", "routed") for mode in modes),
            *((f"routed {mode}", f"unrouted {mode}") for mode in ("eager", *modes)),
        ]
    }
    return {"n": n, "width": width, "ms": ms, "ratios": ratios, "first_call_s": first}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=4, help="prefills per round, each of another image")
    parser.add_argument("--sizes", nargs="+", default=[f"{n}x{width}" for n, width in SIZES])
    parser.add_argument("--smoke", action="store_true", help="one tiny size, without inductor")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.backend, options.layers, options.rounds, options.calls = "aot_eager", 2, 1, 2
        options.sizes = ["16x64"]
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    rows = [measure(n, width, options) for n, width in sizes]
    table = Table("N", "width", *rows[0]["ratios"], title="times as fast as")
    for row in rows:
        table.add_row(str(row["n"]), str(row["width"]), *map(str, row["ratios"].values()))
    Console(width=140).print(table)
    settings = {name: getattr(options, name) for name in ("backend", "layers", "rounds", "calls")}
    settings |= {"words": WORDS, "rank": RANK, "keep": KEEP, "batch": 1}
    if options.device.startswith("cuda"):
        settings["device"] = torch.cuda.get_device_name(options.device)
    if options.out:
        save({"machine": machine(), "settings": settings, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
