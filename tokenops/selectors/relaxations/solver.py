r"""The threshold: the one :math:`\nu` at which the mask :math:`p_i = C((x_i - \nu)/\tau)` sums to k.

Let :math:`w` be 1 on the :math:`\lfloor k \rfloor` largest scores and the fraction of k on the next. Then

.. math:: \sum_i p_i - k = B - A, \qquad A = \sum_i w_i (1 - p_i), \qquad B = \sum_i (1 - w_i) p_i.

Both are sums of small positive terms, so nothing cancels however large k is. Where the tails of C are
exponential, ``balance.py`` finds where the two are equal; the other curves take Newton steps on B - A inside
a bracket that the scores around the cut give. Neither branches on data.

On a CPU, outside of ``torch.compile``, the k-th score is the dearest thing to find; ``easy.py`` does
without it where plain Newton steps settle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenops.eager import may_look
from tokenops.selectors.relaxations.balance import balance, balanced_shift, tails
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import Cut, Number, cut, valid_tokens

SATURATED = 1e4
"""Distance from the threshold, in temperatures, beyond which every curve is flat."""
MANY = 4096
"""Scores in a row beyond which groups of equal ones can be so unlike in number that it takes a point more."""


def solve(x: Tensor, k: Tensor, tau: Number, curve: Curve, same: float | None = None) -> tuple[Cut, Tensor]:
    """The cut and the shift t (... 1) at which p = C((x - center)/tau + t) sums to k.

    Shapes: x (... n), -inf at padding; k float64 (... 1); tau a number or (... 1); ``same`` is the k of all
    rows, if Python knows it. Rows with k <= 0 or k >= valid hold anything.
    """
    at = cut(x, k, tau, same)
    n, wide = x.shape[-1], x.dtype == torch.float64
    if curve.balanced:
        return at, balanced_shift(tails(at), (k, n - k), curve, curve.points + wide + (n > MANY))
    return at, _bracketed(at, curve, _bracket(x, k, curve), 40 if wide else 24)


def _bracket(x: Tensor, k: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """Shifts (... 1) that enclose the solution of every row but for half a gap."""
    whole = k.floor()
    # at most ceil(k) scores lie above the lower of the two around the cut, at least that many above the other
    others = (valid_tokens(x).sum(-1, True) + 1 - k.ceil()).clamp(min=1)
    least = torch.where(k > whole, k - whole, 1.0) / others
    return curve.quantile(least).to(x.dtype), curve.quantile(k / (whole + 1)).to(x.dtype)


def _bracketed(at: Cut, curve: Curve, around: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """The best of ``steps`` shifts: Newton's where they stay inside the bracket, its middle otherwise."""
    gap, t = torch.maximum(at.above, at.below).clamp(max=SATURATED) + 1e-3, torch.zeros_like(at.center)
    low, high = around[0] - gap, around[1] + gap
    best, least, surplus = t, torch.full_like(t, math.inf), t
    settled = 4 * torch.finfo(t.dtype).eps
    for step in range(steps):
        lack, have, down, up = balance(at, t, curve)
        surplus = have - lack
        better = surplus.abs() < least
        best, least = torch.where(better, t, best), torch.where(better, surplus.abs(), least)
        low, high = torch.where(surplus <= 0, t, low), torch.where(surplus >= 0, t, high)
        newton, middle = t - surplus / (down + up), low / 2 + high / 2
        # every third step halves the bracket, should Newton creep
        if may_look(t) and not bool((surplus.abs() > settled * (down + up)).any()):
            break
        t = middle if step % 3 == 2 else torch.where((newton >= low) & (newton <= high), newton, middle)
    return torch.where(surplus.isnan(), surplus, best)


def spread_rest(
    p: Tensor, k: Number, v: Tensor, slope: Tensor, t: Tensor, total: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask moved along its density v to first order, so that its sum is k, and its shift.

    ``total`` is its sum now, in float64, and the slope, the sum of v, is above 0. The shift is float64:
    rounding it would show in the balance.
    """
    rest = (k - total) / slope
    return torch.addcmul(p, v, rest.to(p.dtype), out=out), t + rest
