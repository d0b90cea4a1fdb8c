"""One plain SDPA call per segment: no token is padded, no mask over the whole pack is made."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.kernels.attention.request import Request
from tokenops.kernels.attention.sdpa import dense
from tokenops.kernels.attention.segments import Segments


def why_not(request: Request) -> str | None:
    """Serves everything."""
    return None


def run(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    """Segment by segment."""
    parts = [
        dense(q[rows][None], k[columns][None], v[columns][None], causal, scale)[0]
        for rows, columns in segments.spans
    ]
    return torch.cat(parts) if len(parts) != 1 else parts[0]
