"""``torch.nn.attention.varlen.varlen_attn``, whose arguments differ from release to release."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from tokenops.kernels.attention import cuda
from tokenops.kernels.attention.request import Request
from tokenops.kernels.attention.segments import Segments


@cache
def function() -> tuple[Callable[..., Any] | None, frozenset[str]]:
    """``varlen_attn`` and its argument names; None where torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def why_not(request: Request) -> str | None:
    """What the flash kernels ask for, and what this release of torch can say."""
    if reason := cuda.why_not(request):
        return reason
    attend, knows = function()
    if attend is None:
        return "this torch has no varlen_attn"
    if request.scale is not None and "scale" not in knows:
        return "varlen_attn of this torch takes no scale"
    unequal = request.segments.queries != request.segments.keys
    if request.causal and unequal and "window_size" not in knows:
        return "varlen_attn of this torch does not say where its causal mask is aligned"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    """Torch 2.10 says ``is_causal``, later ones ``window_size``; key heads are repeated where they must."""
    attend, knows = function()
    assert attend is not None
    options: dict[str, object] = {} if scale is None else {"scale": scale}
    if causal:
        options |= {"window_size": (-1, 0)} if "window_size" in knows else {"is_causal": True}
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1 and "enable_gqa" in knows:
        options["enable_gqa"] = True
    elif repeats > 1:
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    q, k, v = map(cuda.aligned, (q, k, v))
    return attend(q, k, v, *segments.cumulative(q.device), *segments.longest, **options)
