"""What torch counts while a real model runs, and the cost model's prediction for the same call."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from integrations import tiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokenops
from tokenops import Pipeline
from tokenops.analysis import Cost, cost

# a size for every image number of tiny.picture
SIZES: dict[str, list[Any]] = {
    "llava": [16] * 4,
    "llava_next": [(16, 16), (20, 30), (40, 18), (30, 32)],
    "qwen2_5_vl": [(1, 8, 8), (1, 4, 12), (2, 4, 8), (1, 4, 4)],
}
TOWERS = {"llava": "vision_tower", "llava_next": "vision_tower", "qwen2_5_vl": "visual"}
PROJECTORS = {
    "llava": "multi_modal_projector",
    "llava_next": "multi_modal_projector",
    "qwen2_5_vl": "visual.merger",
}


def by_column(x: Tensor, *, grid: Tensor) -> Tensor:
    """The left columns of every crop first, so that every line keeps a token and its line break."""
    return -grid[..., 2].float()


def prompts(family: str, images: list[int], batch: int) -> dict[str, Tensor]:
    """Rows alike in everything but their numbers."""
    samples = [tiny.sample(family, images, seed) for seed in range(batch)]
    return tiny.batch(samples) if batch > 1 else samples[0]


def counted(model: Any, inputs: dict[str, Tensor], pipeline: Pipeline | None = None) -> dict[str, int]:
    """FLOPs of each part as the counter sees them, without rotary tables."""
    attached = nullcontext() if pipeline is None else tokenops.attach(model, pipeline)
    with attached, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, use_cache=False, logits_to_keep=1)
    family, seen = model.config.model_type, counter.get_flop_counts()
    root = type(model).__name__

    def at(path: str) -> int:
        return sum(seen.get(f"{root}.{path}", {}).values())

    base = "model."
    tower, projector = (at(base + names[family]) for names in (TOWERS, PROJECTORS))
    if PROJECTORS[family].startswith(TOWERS[family]):
        tower -= projector
    rotary = at(base + "language_model.rotary_emb") + at(base + TOWERS[family] + ".rotary_pos_emb")
    head = at("lm_head")
    total = sum(seen["Global"].values()) - rotary
    rest = total - tower - projector - head
    return {"vision tower": tower, "projector": projector, "rest": rest, "head": head, "total": total}


def predicted(
    model: Any, inputs: dict[str, Tensor], images: list[int], pipeline: Pipeline | None = None
) -> Cost:
    """The cost of the same call, from the sizes of its images."""
    family = model.config.model_type
    ids = inputs["input_ids"]
    visual = ((ids[0] == tiny.IMAGE) | (ids[0] == tiny.VIDEO)).sum().item()
    sizes = [SIZES[family][which] for which in images]
    text = ids.shape[1] - int(visual)
    return cost(model.config, sizes, pipeline, text=text, batch=ids.shape[0], dtype="float32", pairs="full")


def flops(made: Cost) -> dict[str, int]:
    """By the parts that :func:`counted` can tell apart."""
    parts = {name: part.flops for name, part in made.parts.items()}
    parts["rest"] = parts.pop("selection") + parts.pop("layers")
    return parts | {"total": made.flops}
