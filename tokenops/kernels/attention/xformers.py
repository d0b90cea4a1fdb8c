"""Block-diagonal ``memory_efficient_attention`` of xformers 0.0.35. None of its classes leaves this file."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from tokenops.kernels.attention import cuda
from tokenops.kernels.attention.request import Request
from tokenops.kernels.attention.segments import Segments

PINNED = "0.0.35"


@cache
def library() -> tuple[Any, str | None]:
    """``xformers.ops.fmha``, or why it cannot be had. Its warnings about missing extensions are kept back."""
    try:
        found = version("xformers")
    except PackageNotFoundError:
        return None, "xformers is not installed"
    if found.split("+")[0].split(".post")[0] != PINNED:
        return None, f"needs xformers {PINNED}, not {found}"
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from xformers.ops import fmha
    except Exception as error:  # a build for another torch fails in many ways
        return None, f"xformers does not import: {error}"
    finally:
        log.setLevel(level)
    return fmha, None


def why_not(request: Request) -> str | None:
    """What the flash kernels ask for, and the pinned library."""
    return cuda.why_not(request) or library()[1]


def bias(segments: Segments, causal: bool, device: torch.device) -> Any:
    """Their mask object for ours: block-diagonal and, if causal, aligned at the last token."""
    mask = library()[0].attn_bias.BlockDiagonalMask.from_seqlens(
        list(segments.queries), list(segments.keys), device=device
    )
    return mask.make_causal_from_bottomright() if causal else mask


def run(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    """With fewer key heads, every key head is laid out once per group: (1 t g h/g d), without a copy."""
    groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
    q, k, v = (aligned_[None] for aligned_ in map(cuda.aligned, (q, k, v)))
    if repeats > 1:
        q = q.unflatten(2, (groups, repeats))
        k, v = (x[:, :, :, None].expand(-1, -1, -1, repeats, -1) for x in (k, v))
    attend = library()[0].memory_efficient_attention
    out = attend(q, k, v, attn_bias=bias(segments, causal, q.device), scale=scale)
    return out[0].flatten(1, -2)
