"""The same selection with Python's own sort, to test against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hard_topk(scores: Tensor, k: int | Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Sort (score, index) pairs of every row."""
    out = torch.zeros(scores.shape, dtype=torch.bool)
    rows, flags = scores.detach().double().reshape(-1, scores.shape[-1]), out.reshape(-1, scores.shape[-1])
    counts = torch.as_tensor(k).expand(scores.shape[:-1]).reshape(-1)
    real = torch.ones_like(out) if mask is None else mask
    for row, flag, count, valid in zip(rows, flags, counts, real.reshape(flags.shape), strict=True):
        ranked = sorted(
            (i for i in range(len(row)) if valid[i]),
            key=lambda i: -math.inf if math.isnan(row[i]) else float(row[i]),
            reverse=True,
        )
        for i in ranked[: max(0, int(count))]:
            flag[i] = True
    return out
