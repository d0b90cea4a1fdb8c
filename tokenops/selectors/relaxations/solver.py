r"""The threshold: the one :math:`\nu` at which the mask :math:`p_i = C((x_i - \nu)/\tau)` sums to k.

Let :math:`w` be 1 on the :math:`\lfloor k \rfloor` largest scores and the fraction of k on the next. Then

.. math:: \sum_i p_i - k = B - A, \qquad A = \sum_i w_i (1 - p_i), \qquad B = \sum_i (1 - w_i) p_i.

Both are sums of small positive terms, so nothing cancels however large k is. Where the hazards of C are
bounded (logistic, Laplace) the *log-balance* :math:`H = \log B - \log A` has a slope in [1, 2] for any
scores, so a fixed number of Newton steps reaches rounding error. The other curves take Newton steps on B - A
inside a bracket that the scores around the cut give. Neither branches on data.

On a CPU, outside of ``torch.compile``, the k-th score is the dearest thing to find; ``easy.py`` does
without it where plain Newton steps settle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokenops.selectors.relaxations.curves import Curve

Number = float | Tensor
SATURATED = 1e4
"""Distance from the threshold, in temperatures, beyond which every curve is flat."""


def may_look(x: Tensor) -> bool:
    """Whether Python may branch on values: eagerly, where there are values and reading one costs nothing."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and not torch.compiler.is_compiling()


def valid_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """True where a score counts: not padding, and not -inf, which is padding too."""
    return x != -math.inf if mask is None else (x != -math.inf) & mask


class Cut(NamedTuple):
    """A row seen from the cut between kept and dropped, ``center`` (... 1).

    The cut lies midway between the last kept and the first dropped score, so x - center is exact where it
    matters, half a gap of ``gap`` (... 1) away from both. ``distance`` (... n) is (x - center)/tau;
    ``above`` and ``below`` (... n) are 1 on either side of the cut, ``side`` is below - above; ``tied_top``
    and ``tied_rest`` (... 1) tell how the scores in the cut share what is left of k; ``low`` and ``high``
    (... 1) enclose the shift t that solves the row.
    """

    center: Tensor
    gap: Tensor
    distance: Tensor
    above: Tensor
    below: Tensor
    side: Tensor
    tied_top: Tensor
    tied_rest: Tensor
    low: Tensor
    high: Tensor


def _around_cut(x: Tensor, k: Tensor, most: int, exact: bool) -> tuple[Tensor, Tensor]:
    """The floor(k)-th and the next largest score (... 1); the next twice where k has a fraction."""
    whole, n = k.floor(), x.shape[-1]
    ranked = x.topk(min(most + 1, n), -1, sorted=not exact).values
    if exact:
        # floor(k) is `most` in every row: the smallest of the largest and the next, which may equal it
        out = ranked.amin(-1, True)
        last = ranked.masked_fill(ranked == out, math.inf).amin(-1, True)
        last = torch.where((ranked > out).sum(-1, True) < most, out, last)
    else:
        slots = ranked.shape[-1] - 1
        out = ranked.gather(-1, whole.long().clamp(0, slots))
        last = ranked.gather(-1, (whole.long() - 1).clamp(0, slots))
    return torch.where(k > whole, out, last), out


def cut(
    x: Tensor, k: Tensor, tau: Number, valid: Tensor | None, most: int, curve: Curve, exact: bool = False
) -> Cut:
    """Find the cut of every row.

    ``most`` bounds floor(k), so that no more than that needs ranking; ``exact`` says that it is floor(k).
    """
    last, out = _around_cut(x, k, most, exact)
    center, gap = last / 2 + out / 2, ((last / 2 - out / 2) / tau).clamp(max=SATURATED)
    distance = x - center
    side = -distance.sign() if valid is None else (center - x).sign() * valid
    below = side.clamp(min=0)
    above = below - side
    count = x.shape[-1] if valid is None else valid.sum(-1, True)
    higher = above.sum(-1, True)
    tied, tied_top = count - higher - below.sum(-1, True), k - higher
    # at most ceil(k) scores lie above the lower of the two around the cut, at least that many above the other
    whole = k.floor()
    least = torch.where(k > whole, k - whole, 1.0) / (count + 1 - k.ceil()).clamp(min=1)
    return Cut(
        center,
        gap,
        (distance / tau).clamp(-SATURATED, SATURATED),
        above,
        below,
        side,
        torch.where(tied > 0, tied_top, 0.0).to(x.dtype),
        torch.where(tied > 0, tied - tied_top, 0.0).to(x.dtype),
        curve.quantile(least).to(x.dtype) - gap,
        curve.quantile(k / (whole + 1)).to(x.dtype) + gap,
    )


def balance(at: Cut, t: Tensor, curve: Curve) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B and the derivatives -A' and B' at shift t, each (... 1)."""
    side = at.side
    if curve.symmetric:
        # what a kept score lacks is what a dropped one at the same distance has
        q = curve.value(side * (at.distance + t))
        v = curve.density(q)
    else:
        p = curve.value(at.distance + t)
        q, v = at.above + side * p, curve.density(p)
    here = curve.value(t)
    steep, lacking = curve.density(here), curve.survival(t)
    return (
        (q * at.above).sum(-1, True) + at.tied_top * lacking,
        (q * at.below).sum(-1, True) + at.tied_rest * here,
        (v * at.above).sum(-1, True) + at.tied_top * steep,
        (v * at.below).sum(-1, True) + at.tied_rest * steep,
    )


def log_ratio(at: Cut, t: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """H and its slope; 0 and 1 where a side is so small that no mask could tell."""
    lack, have, down, up = balance(at, t, curve)
    least = torch.finfo(t.dtype).tiny ** 0.8
    settled = (lack < least) | (have < least)
    h, slope = have.log() - lack.log(), down / lack + up / have
    return torch.where(settled, 0.0, h), torch.where(settled, 1.0, slope)


def far_start(at: Cut) -> Tensor:
    """Where H is 0 if both tails of the curve are exponential and no score is near the threshold."""
    near = (at.gap - at.distance.abs()).exp()
    top, rest = (near * at.above).sum(-1, True), (near * at.below).sum(-1, True)
    return ((top + at.tied_top).log() - (rest + at.tied_rest).log()) / 2


def solve(
    x: Tensor, k: Tensor, tau: Number, valid: Tensor | None, most: int, curve: Curve, exact: bool = False
) -> tuple[Cut, Tensor]:
    """The cut and the shift t (... 1) at which p = C(distance + t) sums to k.

    Shapes: x (... n) with a very small number at padding, k float64 (... 1), tau a number or (... 1), valid
    (... n) or None. Rows with k <= 0 or k >= valid hold anything.
    """
    at = cut(x, k, tau, valid, most, curve, exact)
    wide = x.dtype == torch.float64
    if curve.balanced:
        t = far_start(at)
        for _ in range(5 if wide else 3):
            h, slope = log_ratio(at, t, curve)
            t = t - h / slope.clamp(1, 2)
        return at, t
    return at, _bracketed(at, curve, 40 if wide else 24)


def _bracketed(at: Cut, curve: Curve, steps: int) -> Tensor:
    """The best of ``steps`` shifts: Newton's where they stay inside the bracket, its middle otherwise."""
    low, high, t = at.low - 1e-3, at.high + 1e-3, torch.zeros_like(at.center)
    best, least = t, torch.full_like(t, math.inf)
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
        inside = (newton >= low) & (newton <= high) & (step % 3 < 2)
        t = torch.where(inside, newton, middle)
    return torch.where(best.isnan() | t.isnan(), t, best)


def spread_rest(
    p: Tensor, k: Number, v: Tensor, slope: Tensor, t: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask moved along its density v to first order, so that its float64 sum is k, and its shift.

    The slope, the sum of v, is above 0. The shift is float64: rounding it would show in the balance.
    """
    rest = (k - p.sum(-1, True, dtype=torch.float64)) / slope
    return torch.addcmul(p, v, rest.to(p.dtype), out=out).clamp_(0, 1), t + rest
