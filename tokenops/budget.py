"""Budgets: how many tokens of N to keep, by one rounding rule."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError

Keep = float | int
_RULE = "keep must be a ratio in (0, 1] or a count >= 1"


def check_keep(keep: Keep, *, who: str = "budget") -> Keep:
    """Return ``keep`` as a float ratio in (0, 1] or an int count >= 1.

    A float is a ratio, an int a count: ``1.0`` keeps everything, ``1`` keeps one token.

    Raises:
        TokenOpsError: ``keep`` is a bool, not finite, not a number, <= 0, or a ratio above 1.

    >>> check_keep(0.2), check_keep(64)
    (0.2, 64)
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TokenOpsError(who, _RULE, repr(keep))
    if isinstance(keep, Integral):
        if keep < 1:
            raise TokenOpsError(who, _RULE, keep)
        return int(keep)
    ratio = float(keep)
    if not math.isfinite(ratio) or not 0.0 < ratio <= 1.0:
        raise TokenOpsError(who, _RULE, keep)
    return ratio


def keep_count(keep: Keep, n: int, *, who: str = "budget") -> int:
    r"""Number of tokens kept of ``n``.

    .. math:: k = \min(n, \max(1, \lfloor \text{keep} \cdot n + 10^{-6} \rfloor))

    for a ratio, ``min(n, keep)`` for a count; 0 of 0. The 1e-6 keeps 0.29 of 100 at 29 in spite of rounding.

    >>> [keep_count(k, 144) for k in (0.1, 0.3, 1.0, 14, 1000)]
    [14, 43, 144, 14, 144]
    """
    keep = check_keep(keep, who=who)
    wanted = keep if isinstance(keep, int) else max(1, math.floor(keep * n + 1e-6))
    return min(wanted, n)


def keep_counts(keep: Keep, n: Tensor, *, who: str = "budget") -> Tensor:
    """:func:`keep_count` for a tensor of token counts, any shape; long, same shape.

    >>> keep_counts(0.1, torch.tensor([144, 5, 0]))
    tensor([14,  1,  0])
    """
    keep = check_keep(keep, who=who)
    if isinstance(keep, int):
        return n.long().clamp(max=keep)
    return torch.minimum((keep * n.double() + 1e-6).floor().long().clamp(min=1), n.long())
