"""Attention with every map written out, to test against."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.kernels.attention.segments import Segments
from tokenops.shapes import Bool, Float


def visible(
    segments: Segments, causal: bool = False, device: torch.device | None = None
) -> Bool[Tensor, "t s"]:
    """True where a query of the pack sees a key: same segment and, if causal, counted from the last token.

    With q queries and k keys, query i of a segment sees its keys 0 … i + k - q.

    >>> visible(Segments.of([1, 2], keys=[2, 3]), causal=True).int()
    tensor([[1, 1, 0, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 1, 1, 1]], dtype=torch.int32)
    """
    out = torch.zeros(segments.total, dtype=torch.bool, device=device)
    for (rows, columns), q, k in zip(segments.spans, segments.queries, segments.keys, strict=True):
        i, j = torch.arange(q, device=device)[:, None], torch.arange(k, device=device)
        out[rows, columns] = (j <= i + k - q) if causal else True
    return out


def attention(
    q: Float[Tensor, "t h d"],
    k: Float[Tensor, "s g d"],
    v: Float[Tensor, "s g e"],
    segments: Segments,
    *,
    causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "t h e"]:
    """Softmax over the visible keys of each segment, in float32 or wider; ``backend`` is not read."""
    wide = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[1] // k.shape[1]
    factor = q.shape[2] ** -0.5 if scale is None else scale
    mask, out = visible(segments, causal, q.device), []
    for rows, columns in segments.spans:
        seen = mask[rows, columns]
        queries = torch.where(seen.any(1)[:, None, None], q[rows], 0).to(wide)
        keys, values = (x[columns].to(wide).repeat_interleave(repeats, 1) for x in (k, v))
        logits = torch.einsum("thd,shd->hts", queries, keys) * factor
        # the lowest number instead of -inf: a row that sees nothing keeps finite gradients, and weights 0
        weight = logits.masked_fill(~seen, torch.finfo(wide).min).softmax(-1) * seen
        out.append(torch.einsum("hts,she->the", weight, values).to(q.dtype))
    return torch.cat(out) if out else q.new_zeros(0, q.shape[1], v.shape[2])


def run(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    """The reference in the form of a backend."""
    return attention(q, k, v, segments, causal=causal, scale=scale)
