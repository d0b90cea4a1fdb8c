"""Measures the pocket VLM on held-out digits: all tokens, and 10/20/30 % of them chosen in reference ways.

python examples/pocket/measure.py --out benchmarks/results/pocket_vlm.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokenops.pocket import Report, Scene, evaluate, evaluate_kept, load, scenes, weights_dir
from tokenops.pocket.evaluate import visual_features
from tokenops.pocket.references import (
    best,
    digit_scores,
    model_scores,
    oracle_scores,
    random_scores,
    uniform_keep,
)

TOKENS = 144
KEEP = {"0.1": 14, "0.2": 29, "0.3": 43}
SEEDS = {"heldout": 2026, "probe": 7, "random": 0}


@torch.no_grad()
def projected(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, some: Sequence[Scene]
) -> Tensor:
    """Projected visual tokens (scenes, 144, D)."""
    parts = []
    for start in range(0, len(some), 64):
        images = [scene.image for scene in some[start : start + 64]]
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        parts.append(visual_features(model, pixels))
    return torch.cat(parts)


def probe_scores(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, held_out: Sequence[Scene]
) -> Tensor:
    """Linear scores (scenes, 144): ridge regression to "near a digit's centre" on training scenes."""
    train = scenes(300, "train", SEEDS["probe"])
    inputs = projected(model, processor, train).flatten(0, 1).double()
    target = torch.from_numpy(np.stack([scene.patch_core >= 0 for scene in train])).flatten().double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    weights = (1.0 + 9.0 * target)[:, None]
    gram = inputs.T @ (weights * inputs) + 1e-3 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ (weights[:, 0] * target)).float()
    return projected(model, processor, held_out) @ solution[:-1]


def selections(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, held_out: Sequence[Scene]
) -> dict[str, Callable[[int], Tensor]]:
    """Ways of choosing k patches per scene, by name."""
    norm, attention = model_scores(model, processor, held_out)
    scores = {
        "random": random_scores(held_out, SEEDS["random"]),
        "feature_norm": norm,
        "feature_norm_smallest": -norm,
        "cls_attention": attention,
        "random_digit_patches": digit_scores(held_out, SEEDS["random"]),
        "oracle_nearest_centres": oracle_scores(held_out),
        "linear_probe": probe_scores(model, processor, held_out),
    }

    def ranked(name: str) -> Callable[[int], Tensor]:
        return lambda k: best(scores[name], k)

    return {"uniform": lambda k: uniform_keep(held_out, k), **{name: ranked(name) for name in scores}}


def numbers(report: Report) -> dict[str, float]:
    """A report as plain rounded numbers."""
    return {"mean": round(report.mean, 4), **{kind: round(v, 4) for kind, v in report.accuracy.items()}}


def main() -> None:
    """Runs the measurement from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=350)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pocket_vlm.json"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, processor = load()
    held_out = scenes(options.scenes, "heldout", SEEDS["heldout"])
    full = evaluate(model, processor, held_out)
    print("all tokens:", full, flush=True)
    kept: dict[str, dict[str, dict[str, float]]] = {}
    for name, choose in selections(model, processor, held_out).items():
        kept[name] = {}
        for share, k in KEEP.items():
            report = evaluate_kept(model, processor, held_out, choose(k))
            kept[name][share] = numbers(report)
            print(f"{name} {share} ({k} tokens): {report}", flush=True)
    result = {
        "what": "pocket VLM on held-out digits; accuracy per kind of question, mean over kinds",
        "settings": {
            "scenes": options.scenes,
            "questions": full.total,
            "seeds": SEEDS,
            "visual_tokens": TOKENS,
        },
        "kept_tokens": KEEP,
        "machine": "2-core CPU",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": (weights_dir() / "model.safetensors").stat().st_size,
        "all_tokens": numbers(full),
        "kept": kept,
    }
    if options.out.is_file():
        result["training"] = json.loads(options.out.read_text()).get("training")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
