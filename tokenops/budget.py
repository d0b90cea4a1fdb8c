"""Budgets: how many tokens of N to keep, by one rounding rule."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import overload

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError

Keep = float | int
EPSILON = 1e-6
"""Added before rounding down, so that 0.29 of 100 is 29 in spite of float arithmetic."""
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


class Budget:
    """The attribute ``keep`` of a component: a ratio in (0, 1] or a count, checked whenever it is set.

    Errors are raised in the name of the class that declares it.

    >>> class Half:
    ...     keep = Budget()
    >>> half = Half()
    >>> half.keep = 0.5
    >>> half.keep
    0.5
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._who, self._slot = owner.__name__, f"_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Budget: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Keep: ...
    def __get__(self, instance: object | None, owner: type) -> Budget | Keep:
        return self if instance is None else getattr(instance, self._slot)

    def __set__(self, instance: object, keep: Keep) -> None:
        setattr(instance, self._slot, check_keep(keep, who=self._who))


def keep_count(keep: Keep, n: int, *, who: str = "budget") -> int:
    r"""Number of tokens kept of ``n``.

    .. math:: k = \min(n, \max(1, \lfloor \text{keep} \cdot n + 10^{-6} \rfloor))

    for a ratio, ``min(n, keep)`` for a count; 0 of 0. The 1e-6 keeps 0.29 of 100 at 29 in spite of rounding.

    Raises:
        TokenOpsError: a bad keep, n below 0.

    >>> [keep_count(k, 144) for k in (0.1, 0.3, 1.0, 14, 1000)]
    [14, 43, 144, 14, 144]
    """
    keep = check_keep(keep, who=who)
    if n < 0:
        raise TokenOpsError(who, "n >= 0 tokens", n)
    wanted = keep if isinstance(keep, int) else max(1, math.floor(keep * n + EPSILON))
    return min(wanted, n)


def keep_counts(keep: Keep, n: Tensor, *, who: str = "budget") -> Tensor:
    r""":func:`keep_count` for a tensor of token counts.

    .. math:: k_b = \min(n_b, \max(1, \lfloor \text{keep} \cdot n_b + 10^{-6} \rfloor))

    for a ratio, ``min(n, keep)`` for a count.

    Shapes: n (...) -> (...) long.

    Raises:
        TokenOpsError: a bad keep.

    >>> keep_counts(0.1, torch.tensor([144, 5, 0]))
    tensor([14,  1,  0])
    """
    keep = check_keep(keep, who=who)
    if isinstance(keep, int):
        return n.long().clamp(max=min(keep, torch.iinfo(torch.long).max))
    return torch.minimum((keep * n.double() + EPSILON).floor().long().clamp(min=1), n.long())
