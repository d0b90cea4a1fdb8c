"""Row gather, scatter and pooling along the token axis, on flattened rows.

``index_select`` and ``index_copy_`` on ``(b·n, d)`` cost a fraction of ``gather`` and ``scatter`` with an
index expanded over the features, and their backward passes do too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.shapes import Bool, Float, Int

__all__ = ["gather_rows", "pool_rows", "put_rows"]


def _flat(index: Tensor, n: int) -> Tensor:
    return index + n * torch.arange(index.shape[0], device=index.device)[:, None]


@register("kernel")
def gather_rows(x: Tensor, index: Int[Tensor, "b k"]) -> Tensor:
    r"""The rows of ``x`` that an index names.

    .. math:: y_{ij} = x_{i,\,\mathrm{index}_{ij}}

    Shapes: x (b n ...), index (b k) -> (b k ...).

    >>> gather_rows(torch.tensor([[10, 11, 12]]), torch.tensor([[2, 0]]))
    tensor([[12, 10]])
    """
    flat = _flat(index, x.shape[1]).flatten()
    return x.flatten(0, 1).index_select(0, flat).view(*index.shape, *x.shape[2:])


@register("kernel")
def put_rows(into: Tensor, index: Int[Tensor, "b k"], valid: Bool[Tensor, "b k"], y: Tensor) -> Tensor:
    r"""A copy of ``into`` with the valid rows of ``y`` at the places that an index names.

    .. math:: z_{i,\,\mathrm{index}_{ij}} = y_{ij} \text{ where } \mathrm{valid}_{ij}, \qquad
        z = x \text{ elsewhere}

    Shapes: into x (b n ...), index and valid (b k), y (b k ...) -> (b n ...).

    >>> put_rows(torch.zeros(1, 3), torch.tensor([[2, 0]]), torch.tensor([[True, False]]), torch.ones(1, 2))
    tensor([[0., 0., 1.]])
    """
    rows = into.flatten(0, 1)
    # one spare row takes the filler slots, so their index never matters
    target = torch.where(valid, _flat(index, into.shape[1]), rows.shape[0]).flatten()
    out = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    return out.index_copy_(0, target, y.flatten(0, 1))[:-1].view(into.shape)


@register("kernel")
def pool_rows(
    x: Tensor, group: Int[Tensor, "b n"], weight: Float[Tensor, "b n"], k: int
) -> tuple[Tensor, Float[Tensor, "b k"]]:
    r"""Weighted sums per group and the mass of each group; group -1 counts nowhere.

    .. math:: y_{ig} = \sum_{j:\ \mathrm{group}_{ij} = g} w_{ij} x_{ij}, \qquad
        m_{ig} = \sum_{j:\ \mathrm{group}_{ij} = g} w_{ij}

    Shapes: x (b n ...), group and weight (b n) -> (b k ...), (b k), accumulated in float32 or wider.

    >>> pool_rows(torch.ones(1, 3, 1), torch.tensor([[0, 0, -1]]), torch.tensor([[1.0, 2.0, 5.0]]), 1)
    (tensor([[[3.]]]), tensor([[3.]]))
    """
    b = x.shape[0]
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    target = torch.where(group >= 0, _flat(group, k), b * k).flatten()
    weight = torch.where(group >= 0, weight, 0).to(wide)
    weighted = x.to(wide) * weight.reshape(weight.shape + (1,) * (x.ndim - 2))
    weighted = torch.where((group >= 0).reshape(weight.shape + (1,) * (x.ndim - 2)), weighted, 0)
    total = weighted.new_zeros(b * k + 1, *x.shape[2:]).index_add(0, target, weighted.flatten(0, 1))
    mass = weight.new_zeros(b * k + 1).index_add(0, target, weight.flatten())
    return total[:-1].view(b, k, *x.shape[2:]), mass[:-1].view(b, k)
