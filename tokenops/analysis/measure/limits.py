"""What the cost model says about the inputs at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tokenops.analysis.cost import DEVICES, break_even, cost
from tokenops.analysis.measure.result import Limit
from tokenops.errors import TokenOpsError
from tokenops.integrations import Trace
from tokenops.pipeline import Pipeline


def image_sizes(images: Sequence[Trace], inputs: Mapping[str, Any]) -> list[list[Any]]:
    """Sample by sample, its images as :func:`tokenops.analysis.cost` takes them.

    A size where the inputs tell one (Qwen2.5-VL, LLaVA-NeXT), else a number of tokens.
    """
    told = {
        "image": inputs.get("image_grid_thw", inputs.get("image_sizes")),
        "video": inputs.get("video_grid_thw"),
    }
    taken = dict.fromkeys(told, 0)
    samples: dict[int, list[Any]] = {}
    for image in images:
        sizes = told[image.kind]
        entry = image.n if sizes is None else tuple(int(n) for n in sizes[taken[image.kind]])
        taken[image.kind] += 1
        samples.setdefault(image.sample, []).append(entry)
    return [samples[row] for row in sorted(samples)]


def device_name(device: torch.device) -> str | None:
    """The cost model's name of the device a model is on, None for a GPU it does not know.

    >>> device_name(torch.device("cpu"))
    'cpu'
    """
    if device.type == "cpu":
        return "cpu"
    told = torch.cuda.get_device_name(device).lower().replace(" ", "")
    return next((name for name in DEVICES if name in told), None)


def limit_of(
    model: nn.Module, pipeline: Pipeline, samples: Sequence[list[Any]], text: Sequence[int], device: Any
) -> Limit:
    """The limit of one pipeline on these inputs.

    Args:
        model: its config and dtype are read.
        pipeline: what is attached.
        samples: of every row of the batch, its images.
        text: of every row, its other tokens.
        device: as :func:`tokenops.analysis.cost` takes it; None if nobody knows.
    """
    if device is None:
        return Limit(reason="the cost model does not know this GPU (device= names one, or takes its rates)")
    if any(images != samples[0] for images in samples) or len(samples) != len(text):
        return Limit(reason="the cost model takes rows with the same images")
    words = round(sum(text) / len(text))
    try:
        found = cost(model, samples[0], pipeline, text=words, batch=len(text), device=device)
        least = break_even(model, pipeline, text=words, batch=len(text), device=device)
    except TokenOpsError as error:
        return Limit(reason=f"the cost model cannot tell: {error}")
    reasons = [f"not counted: {', '.join(found.not_counted)}"] if found.not_counted else []
    if least is None:
        reasons.append("by the cost model it helps at no number of visual tokens")
    speedup = found.speedup_limit
    return Limit(speedup.time, speedup.flops, least, found.device, "; ".join(reasons) or None)
