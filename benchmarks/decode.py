"""Decode speed of an attached model against the same model unattached, interleaved in one run.

    python benchmarks/decode.py --out benchmarks/results/decode.json

A LLaVA-shaped model with random weights (8 layers, width 512, 576 visual tokens) decodes greedily from its
own prefill cache; the time per token is the median over single steps of all rounds. Ratios above 1 mean
faster than unattached. At keep = 1.0 nothing is dropped and only the wrappers cost; below, the cache is
shorter.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenops
from tokenops import recipes

IMAGE = 999
KEEPS = (1.0, 0.5, 0.2, 0.1)


def build() -> LlavaForConditionalGeneration:
    """The model, in evaluation mode."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=1000,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_token_id=IMAGE
    )
    return LlavaForConditionalGeneration(config).eval()


def inputs(batch: int) -> dict[str, torch.Tensor]:
    """Prompts of 8 words, an image and 24 words."""
    torch.manual_seed(1)
    row = torch.cat([torch.randint(5, 900, (8,)), torch.full((576,), IMAGE), torch.randint(5, 900, (24,))])
    ids = row.expand(batch, -1).contiguous()
    pixels = torch.randn(batch, 3, 336, 336)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def decode(model: Any, prompt: dict[str, torch.Tensor], steps: int) -> list[float]:
    """Seconds of each single-token forward after a prefill."""
    times = []
    with torch.no_grad():
        out = model(**prompt, use_cache=True, logits_to_keep=1)
        cache, mask = out.past_key_values, prompt["attention_mask"]
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(steps):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            position = torch.full_like(token, mask.shape[1] - 1)
            start = time.perf_counter()
            out = model(input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache)
            times.append(time.perf_counter() - start)
            token = out.logits[:, -1:].argmax(-1)
    return times


def measure(rounds: int, steps: int, batch: int) -> list[dict[str, float]]:
    """Median time per token unattached and attached, and the median of the per-round ratios."""
    model, prompt = build(), inputs(batch)
    plain: list[float] = []
    kept: dict[float, list[float]] = {keep: [] for keep in KEEPS}
    decode(model, prompt, 4)
    for _ in track(range(rounds), f"batch {batch}"):
        plain.append(float(np.median(decode(model, prompt, steps))))
        for keep in KEEPS:
            with tokenops.attach(model, recipes.random(keep)):
                kept[keep].append(float(np.median(decode(model, prompt, steps))))
    return [
        {
            "batch": batch,
            "keep": keep,
            "unattached_ms": round(1e3 * float(np.median(plain)), 3),
            "attached_ms": round(1e3 * float(np.median(times)), 3),
            "speed_ratio": round(float(np.median(np.array(plain) / np.array(times))), 3),
        }
        for keep, times in kept.items()
    ]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [row for batch in (1, 4) for row in measure(options.rounds, options.steps, batch)]
    table = Table(title="decode, attached / unattached")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    settings = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"settings": settings | {"rounds": options.rounds, "steps": options.steps}, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
