"""What visual-token reduction can gain at best: roofline limits and break-even points of full-size models.

    python benchmarks/limits.py --out benchmarks/results/limits.json

Nothing runs and no weights are needed: the sizes of the released 7B models, the devices of
``tokenops.analysis.DEVICES`` and the cost model. Batch 1, 64 text tokens, bfloat16, causal attention counted
once. "tower rate" rows score tokens at the bfloat16 rate instead of float32 without TF32; "compiled" rows of
the break-even points take launches to cost nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from interleaved import save

from tokenops import Pipeline, recipes
from tokenops.analysis import DEVICES, Device, break_even, cost
from tokenops.analysis.measure.architectures import config_of
from tokenops.routers import LowRankAttention
from tokenops.selectors.scorers import LearnedScorer

KEEPS = (0.1, 0.2, 0.3)
RANK, TEXT = 256, 64
CASES = (("LLaVA-1.5-7B", 576), ("LLaVA-NeXT-7B", 2880), ("Qwen2.5-VL-7B", 1296), ("Qwen2.5-VL-7B", 6828))


def configs() -> dict[str, Any]:
    """The configs of the models, by name."""
    return {name: config_of(name.lower()) for name, _ in CASES}


def methods(config: Any, keep: float) -> Iterator[tuple[str, Pipeline]]:
    """(name, pipeline), with parameters that hold no memory."""
    text = config.text_config
    heads = {"heads": text.num_attention_heads, "kv_heads": text.num_key_value_heads}
    with torch.device("meta"):
        scorer = LearnedScorer(text.hidden_size)
        factors = {
            layer: LowRankAttention(text.hidden_size, RANK, **heads, causal=False)
            for layer in range(text.num_hidden_layers)
        }
    yield "prune", recipes.visionselector(scorer, keep)
    yield "skip", recipes.alvts(factors, keep)
    yield "fastv", recipes.fastv(keep)


def tower_rate(device: Device) -> Device:
    """The device if what runs in float32 ran as fast as bfloat16."""
    return replace(device, flops={**device.flops, "float32": device.flops["bfloat16"]})


def limits() -> Iterator[dict[str, Any]]:
    """Speed-up limits: model, tokens, device, method, keep."""
    known = configs()
    for device in DEVICES.values():
        for rate, machine in (("float32", device), ("tower rate", tower_rate(device))):
            for name, tokens in CASES:
                for keep in KEEPS:
                    for method, pipeline in methods(known[name], keep):
                        row = {"device": device.name, "scoring": rate, "model": name, "tokens": tokens}
                        row |= {"method": method, "keep": keep}
                        yield row | limit(known[name], tokens, pipeline, machine)


def limit(config: Any, tokens: int, pipeline: Pipeline, device: Device) -> dict[str, float]:
    """The best that can be had in time, FLOPs and cache, and the milliseconds it stands on."""
    made = cost(config, tokens, pipeline, text=TEXT, dtype="bfloat16", device=device)
    assert made.whole is not None
    row = dict(asdict(made.speedup_limit), kv=made.whole.kv_bytes / made.kv_bytes)
    row |= {"ms": 1e3 * made.seconds, "whole_ms": 1e3 * made.whole.seconds}
    return {name: round(value, 3) for name, value in row.items()}


def break_evens() -> Iterator[dict[str, Any]]:
    """The token counts from which the methods can help at all."""
    for device in DEVICES.values():
        for how, machine in (("eager", device), ("compiled", replace(device, launch=0.0))):
            for name, config in configs().items():
                for keep in KEEPS:
                    for method, pipeline in methods(config, keep):
                        found = break_even(config, pipeline, text=TEXT, dtype="bfloat16", device=machine)
                        row = {"device": device.name, "launches": how, "model": name, "method": method}
                        yield row | {"keep": keep, "tokens": found}


def parts() -> Iterator[dict[str, Any]]:
    """Where the time of the whole models goes."""
    for name, tokens in CASES:
        made = cost(configs()[name], tokens, text=TEXT, dtype="bfloat16").as_dict()
        for part, numbers in made["parts"].items():
            share = round(numbers["seconds"] / made["total"]["seconds"], 4)
            yield {"model": name, "tokens": tokens, "part": part, **numbers, "share": share}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    devices = [asdict(device) for device in DEVICES.values()]
    result: dict[str, Any] = {"settings": {"text": TEXT, "batch": 1, "dtype": "bfloat16", "rank": RANK}}
    result |= {"devices": devices, "limits": list(limits()), "parts": list(parts())}
    result |= {"break_even": list(break_evens())}
    for row in result["limits"]:
        if row["device"] == "h200" and row["scoring"] == "tower rate":
            print(*(f"{value}" for value in row.values()), sep="\t")
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
