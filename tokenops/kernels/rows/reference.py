"""The same three operations as plain loops, to test against."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """``out[i, j] = x[i, index[i, j]]``, one row at a time."""
    return (
        torch.stack([row[i] for row, i in zip(x, index, strict=True)]) if len(x) else x[:, : index.shape[1]]
    )


def put_rows(into: Tensor, index: Tensor, valid: Tensor, y: Tensor) -> Tensor:
    """Write the valid slots one by one."""
    out = into.clone()
    for i in range(index.shape[0]):
        for j in range(index.shape[1]):
            if valid[i, j]:
                out[i, index[i, j]] = y[i, j]
    return out


def pool_rows(x: Tensor, group: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Add token after token to its group."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    total = torch.zeros(x.shape[0], k, *x.shape[2:], dtype=wide, device=x.device)
    mass = torch.zeros(x.shape[0], k, dtype=wide, device=x.device)
    for i in range(group.shape[0]):
        for j in range(group.shape[1]):
            if group[i, j] >= 0:
                total[i, group[i, j]] += weight[i, j].to(wide) * x[i, j].to(wide)
                mass[i, group[i, j]] += weight[i, j].to(wide)
    return total, mass
