"""Plain SDPA for segments that are all alike: a batch without padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokenops.kernels.attention.request import Request
from tokenops.kernels.attention.segments import Segments


def why_not(request: Request) -> str | None:
    """Segments of several lengths, or a causal mask that would have to be written out."""
    queries, keys = set(request.segments.queries), set(request.segments.keys)
    if len(queries) > 1 or len(keys) > 1:
        return "the segments have different lengths"
    if request.causal and queries != {1} and queries != keys:
        return "fewer queries than keys need a causal mask in memory"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    """As one batch."""
    q, k, v = (x.unflatten(0, (len(segments), -1)) for x in (q, k, v))
    return dense(q, k, v, causal, scale).flatten(0, 1)


def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """(b t h d), (b s g d), (b s g e) -> (b t h e), with at least one key and, if causal, t <= s.

    ``is_causal`` of SDPA counts from the first token: it is used for as many queries as keys only.
    """
    t, s = q.shape[1], k.shape[1]
    causal = causal and t > 1
    mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t) if causal and t < s else None
    out = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
