"""Traces as JSON values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenops.analysis.report.views import View, data_address
from tokenops.integrations import Trace
from tokenops.pipeline import Pipeline

_THUMBNAIL = 480


def visual_record(every: Trace, views: Sequence[View], original: Any) -> dict[str, Any]:
    """An image or video: all of its tokens by their numbers and places, and the pictures they lie on."""
    import numpy as np

    given = None
    if original is not None:
        pixels = torch.from_numpy(np.array(original))
        given = {
            "picture": data_address(pixels, _THUMBNAIL),
            "width": original.width,
            "height": original.height,
        }
    return {
        "kind": every.kind,
        "n": every.n,
        "index": every.index.tolist(),
        "grid": every.grid.tolist(),
        "views": [view.as_dict() for view in views],
        "original": given,
    }


def method_record(
    name: str,
    pipeline: Pipeline | None,
    every: Sequence[Trace],
    traces: Sequence[Trace],
    answer: str,
    tokens_per_layer: Sequence[float],
) -> dict[str, Any]:
    """A method: its code, what it answered and what it kept, stage by stage."""
    numbers = {t.image: t.index for t in every}
    stages = [stage_record(t, numbers[t.image]) for t in traces]
    return {
        "name": name,
        "code": None if pipeline is None else repr(pipeline),
        "answer": answer,
        "tokens_per_layer": list(tokens_per_layer),
        "stages": stages,
    }


def stage_record(trace: Trace, numbers: Tensor) -> dict[str, Any]:
    """One trace. Scores run along all tokens of the image, null where there is none or it is not finite.

    Args:
        trace: what is written down.
        numbers: (n) all tokens of the image.
    """
    return {
        "stage": trace.stage,
        "layer": trace.layer,
        "visual": trace.image,
        "index": trace.index.tolist(),
        "scores": None if trace.scores is None else _along(trace.scores, trace.candidates, numbers),
        "nan_scores": trace.nan_scores,
        "mass": None if bool((trace.mass == 1).all()) else [_short(m) for m in trace.mass.tolist()],
    }


def _along(scores: Tensor, candidates: Tensor, numbers: Tensor) -> list[float | None]:
    """Scores (of candidates) at the places of their tokens among all numbers."""
    given = dict(zip(candidates.tolist(), scores.float().cpu().tolist(), strict=True))
    return [_short(given.get(number, math.nan)) for number in numbers.tolist()]


def _short(value: float) -> float | None:
    """Four digits: enough to read, and the page stays small."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
