"""Cosine similarity as set-level methods compare with it: no NaN, ties that are ties, bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.shapes import Float, Int

ONE = 1 << 20  # a cosine of 1, in the steps that cosines are counted in
_AT_ONCE = 1 << 24  # similarities held at a time, 64 MiB in float32


def directions(x: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    r"""Unit vectors, e = d + 1, in float32 or wider.

    .. math:: u_i = (x_i / \lVert x_i \rVert,\ 0), \qquad u_i = (0, 1) \text{ for } x_i = 0

    So zero vectors are alike, and unlike all others. A vector with NaN or infinity gets zeros: unlike all.

    >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = x.abs().amax(-1, keepdim=True)
    # over the largest entry first, so that no square overflows
    x = torch.where(largest.isfinite(), x / torch.where(largest > 0, largest, 1), 0)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.cat([x / torch.where(length > 0, length, 1), (largest == 0).to(x.dtype)], -1)


def cosines(a: Float[Tensor, "n e"], b: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
    r"""Cosines of :func:`directions` in whole steps of 2⁻²⁰, about the rounding error of float32.

    So equal vectors are equally far from all others, on whichever side of the rounding they end.

    >>> u = directions(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> cosines(u, u) / ONE
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]])
    """
    with torch.autocast(a.device.type, enabled=False):
        return (a @ b.T).mul_(ONE).round_()


def most_alike(
    a: Float[Tensor, "n e"], b: Float[Tensor, "m e"], *, others: bool = False
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """For every direction in ``a`` the largest cosine with one in ``b`` and which one that is, m >= 1.

    Ties go to the lowest index. ``others``: ``b`` is ``a``, and a direction is not compared with itself.

    >>> u = directions(torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 3.0]]))
    >>> most_alike(u, u, others=True)[1]
    tensor([2, 2, 0])
    """
    some = max(1, _AT_ONCE // b.shape[0])
    best = [a.new_zeros(0)], [torch.zeros(0, dtype=torch.long, device=a.device)]
    for start in range(0, a.shape[0], some):
        close = cosines(a[start : start + some], b)
        if others:
            close.diagonal(start).fill_(-torch.inf)
        for parts, part in zip(best, close.max(1), strict=True):
            parts.append(part)
    return torch.cat(best[0]), torch.cat(best[1])
