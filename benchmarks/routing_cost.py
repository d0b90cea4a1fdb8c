"""What routing every layer costs: against pruning before the language model, and against counted FLOPs.

    python benchmarks/routing_cost.py --out benchmarks/results/routing_cost.json

A LLaVA-shaped model with random weights: 8 layers of width 1,024 with a SwiGLU of 2,752, 1,296 visual and 64
text tokens, a vision tower of negligible size; prefill without a cache, logits of the last token only. Every
contender runs once per round, in turn; times are processor seconds, one thread, medians over the rounds.
FLOPs are multiply-adds times two of all matrix products, attention halved by causality, scoring included.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenops
from tokenops import Pipeline, Prune, recipes
from tokenops.integrations import low_rank_factors
from tokenops.routers import Route
from tokenops.selectors import TopK

IMAGE, SIDE, TEXT = 999, 36, 64
LAYERS, WIDTH, FFN, HEADS = 8, 1024, 2752, 8
KEEPS = (0.1, 0.2, 0.3)
RANKS = (32, 64, 128)


def build(
    layers: int = LAYERS, width: int = WIDTH, ffn: int = FFN, heads: int = HEADS, side: int = SIDE
) -> LlavaForConditionalGeneration:
    """The model, in evaluation mode."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * 4,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=1000,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=side**2,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


def prompt(batch: int = 1, side: int = SIDE) -> dict[str, Tensor]:
    """Half of the text before the image, half behind it."""
    torch.manual_seed(1)
    words = torch.randint(5, 900, (TEXT,))
    ids = torch.cat([words[: TEXT // 2], torch.full((side**2,), IMAGE), words[TEXT // 2 :]])
    ids = ids.expand(batch, -1).contiguous()
    pixels = torch.randn(batch, 3, side * 4, side * 4)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def first_feature(x: Tensor) -> Tensor:
    """Scores that cost nothing."""
    return x[..., 0].float()


def flops(visual: float, rank: int | None = None) -> float:
    """Of all layers with that many visual tokens in each, scored over all tokens at a rank."""
    tokens, everything = visual + TEXT, SIDE**2 + TEXT
    layer = 2 * tokens * (4 * WIDTH**2 + 3 * WIDTH * FFN) + 2 * tokens**2 * WIDTH
    if rank is not None:
        # two projections, a map without a causal mask, its columns' sums over visual and over text rows
        layer += 4 * everything * WIDTH * rank + 2 * everything**2 * rank + 4 * everything**2
    return LAYERS * layer


def contenders(model: Any) -> Iterator[tuple[str, float, int | None, Pipeline]]:
    """(name, keep, rank, pipeline)."""
    factors = {rank: low_rank_factors(model, rank, svd="logits") for rank in RANKS}
    for keep in KEEPS:
        yield f"prune {keep}", keep, None, Pipeline(after_projector=Prune(TopK(first_feature, keep)))
        yield f"route {keep}", keep, None, Pipeline(layers=Route(first_feature, keep))
        for rank in RANKS:
            yield f"alvts {keep} R={rank}", keep, rank, recipes.alvts(factors[rank], keep)


@contextmanager
def running(model: Any, pipeline: Pipeline | None) -> Iterator[None]:
    """The pipeline attached, or nothing."""
    with nullcontext() if pipeline is None else tokenops.attach(model, pipeline):
        yield


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(rounds: int) -> dict[str, Any]:
    """Medians, ratios and their counted limits."""
    torch.set_num_threads(1)
    model, inputs = build(), prompt()
    runs: list[tuple[str, float, int | None, Pipeline | None]] = [("full", 1.0, None, None)]
    runs += list(contenders(model))
    times: dict[str, list[float]] = {name: [] for name, *_ in runs}
    with torch.no_grad():
        for number in track(range(rounds + 1), "rounds"):
            for name, _, _, pipeline in runs:
                with running(model, pipeline):
                    took = seconds(lambda: model(**inputs, use_cache=False, logits_to_keep=1))
                if number:  # the first warms up
                    times[name].append(took)
    median = {name: float(np.median(values)) for name, values in times.items()}
    rows = []
    for name, keep, rank, _ in runs:
        limit = flops(SIDE**2) / flops(round(keep * SIDE**2), rank)
        ratio = float(np.median(np.array(times["full"]) / np.array(times[name])))
        row: dict[str, Any] = {"name": name, "keep": keep, "rank": rank, "seconds": round(median[name], 4)}
        row |= {"speedup": round(ratio, 3), "counted": round(limit, 3), "share": round(ratio / limit, 3)}
        if keep < 1:
            against = np.array(times[name]) / np.array(times[f"prune {keep}"])
            row["over_prune"] = round(float(np.median(against)) - 1, 3)
        rows.append(row)
    settings = {
        "model": f"{LAYERS} layers, width {WIDTH}, SwiGLU {FFN}, {SIDE**2} visual + {TEXT} text tokens",
        "rounds": rounds,
        "threads": 1,
        "dtype": "float32",
        "torch": torch.__version__,
        "machine": f"{platform.machine()} CPU",
    }
    return {"rows": rows, "settings": settings}


def show(result: dict[str, Any]) -> None:
    """A table on the terminal."""
    table = Table("contender", "seconds", "speed-up", "counted", "share", "over prune")
    for r in result["rows"]:
        over = f"{r['over_prune']:+.1%}" if "over_prune" in r else ""
        table.add_row(r["name"], *(str(r[k]) for k in ("seconds", "speedup", "counted", "share")), over)
    Console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options.rounds)
    show(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
