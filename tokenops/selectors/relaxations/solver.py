r"""The threshold: the one :math:`\nu` at which the mask :math:`p_i = C((x_i - \nu)/\tau)` sums to k.

Let :math:`w` be 1 on the :math:`\lfloor k \rfloor` largest scores and the fraction of k on the next. Then

.. math:: \sum_i p_i - k = B - A, \qquad A = \sum_i w_i (1 - p_i), \qquad B = \sum_i (1 - w_i) p_i.

Both are sums of small positive terms, so nothing cancels however large k is. Where the hazards of C are
bounded (logistic, Laplace) the *log-balance* :math:`H = \log B - \log A` has a slope in [1, 2] for any
scores and is nearly a line, so that a few points of it tell its root to rounding error. The other
curves take Newton steps on B - A inside a bracket that the scores around the cut give. Neither branches on
data.

On a CPU, outside of ``torch.compile``, the k-th score is the dearest thing to find; ``easy.py`` does
without it where plain Newton steps settle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.kernels.order import ascending
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


@dataclass(slots=True)
class Cut:
    """A row seen from the cut between kept and dropped, ``center`` (... 1).

    The cut lies midway between the last kept and the first dropped score, so x - center is exact where it
    matters, half a gap of ``gap`` (... 1) away from both. ``kept`` and ``dropped`` hold how many temperatures
    the floor(k) highest scores lie above it and the others below, infinity where a row has none. A fraction
    of k, ``part`` (... 1), goes to a score of its own, in the cut, of which ``rest`` (... 1) is dropped; both
    are 0 in rows whose k has none, and None where Python knows that all are.
    """

    center: Tensor
    gap: Tensor
    kept: Tensor
    dropped: Tensor
    part: Tensor | None
    rest: Tensor | None


def finite(x: Tensor) -> Tensor:
    """``x`` with its largest finite number for infinity: two infinite scores are equal, not NaN apart."""
    return x.clamp(max=torch.finfo(x.dtype).max)


def cut(x: Tensor, k: Tensor, tau: Number, same: float | None = None) -> Cut:
    """Find the cut of every row; arguments as in :func:`solve`."""
    n, whole = x.shape[-1], k.floor()
    part = k - whole
    if same is None:
        ranked, first = ascending(x), n - whole.long()
        last, out = (finite(ranked.gather(-1, (first - i).clamp(0, n - 1))) for i in (0, 1))
        last, between = torch.where(part > 0, out, last), 0
    else:
        # the floor(k) highest are the same slice of every row, in any order
        first, between = n - min(max(math.floor(same), 0), n), math.ceil(same) - math.floor(same)
        ranked = ascending(x, max(first - 1, 0))
        last = out = finite(ranked.narrow(-1, max(first - 1, 0), 1))
        if not between:
            last = finite(ranked[..., min(first, n - 1) :].amin(-1, True))
    center, gap = last / 2 + out / 2, (last / 2 - out / 2) / tau
    above = (finite(ranked) - center) / tau
    below = -above
    if same is not None:
        above, below = above[..., first:], below[..., : max(first - between, 0)]
        if not between:
            return Cut(center, gap, above, below, None, None)
    else:
        rank = torch.arange(n - 1, -1, -1, device=x.device)
        above = torch.where(rank < whole, above, math.inf)
        below = torch.where(rank >= k.ceil(), below, math.inf)
    rest = torch.where(part > 0, 1 - part, 0.0)
    return Cut(center, gap, above, below, part.to(x.dtype), rest.to(x.dtype))


def balance(at: Cut, t: Tensor, curve: Curve) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B and the derivatives -A' and B' at shift t, each (... 1)."""
    if curve.symmetric:
        # what a kept score lacks is what a dropped one at the same distance has
        lack = curve.value(-t - at.kept)
        down = curve.density(lack)
    else:
        p = curve.value(t + at.kept)
        lack, down = 1 - p, curve.density(p)
    have = curve.value(t - at.dropped)
    up = curve.density(have)
    if not curve.balanced:
        lack, down = (torch.where(at.kept == math.inf, 0.0, v) for v in (lack, down))
        have, up = (torch.where(at.dropped == math.inf, 0.0, v) for v in (have, up))
    lack, have, down, up = (v.sum(-1, True) for v in (lack, have, down, up))
    if at.part is None or at.rest is None:
        return lack, have, down, up
    here = curve.value(t)
    steep = curve.density(here)
    return (
        lack + at.part * curve.survival(t),
        have + at.rest * here,
        down + at.part * steep,
        up + at.rest * steep,
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
    finfo = torch.finfo(at.gap.dtype)
    gap = at.gap.clamp(max=finfo.max)
    # the nearest score is a gap away but for rounding
    kept, dropped = ((gap - away).clamp(max=0).exp().sum(-1, True) for away in (at.kept, at.dropped))
    if at.part is not None and at.rest is not None:
        kept, dropped = kept + at.part, dropped + at.rest
    # both are at least 1 but where a gap is endless: there 0 will do
    return (kept.clamp(min=finfo.tiny).log() - dropped.clamp(min=finfo.tiny).log()) / 2


def solve(x: Tensor, k: Tensor, tau: Number, curve: Curve, same: float | None = None) -> tuple[Cut, Tensor]:
    """The cut and the shift t (... 1) at which p = C((x - center)/tau + t) sums to k.

    Shapes: x (... n), -inf at padding; k float64 (... 1); tau a number or (... 1); ``same`` is the k of all
    rows, if Python knows it. Rows with k <= 0 or k >= valid hold anything.
    """
    at = cut(x, k, tau, same)
    wide = x.dtype == torch.float64
    if curve.balanced:
        return at, _balanced(at, curve, 5 if wide else 3)
    return at, _bracketed(at, curve, _bracket(x, k, curve), 40 if wide else 24)


def _balanced(at: Cut, curve: Curve, points: int) -> Tensor:
    """Where the inverse of H, a cubic through value and slope at the last two points, crosses 0.

    H is close to a line: three points leave rounding in float32 and five in float64, even where many equal
    scores at the cut bend it most.
    """
    t, before = far_start(at), None
    for _ in range(points):
        h, slope = log_ratio(at, t, curve)
        inverse = 1 / slope.clamp(1, 2)
        step = -h * inverse
        if before is not None:
            t0, h0, inverse0 = before
            apart = h - h0
            mean = (t - t0) / apart
            bend = (inverse - mean - (inverse - 2 * mean + inverse0) * h0 / apart) * h * (h / apart)
            # two points whose H differs by rounding do not say how it bends
            step = torch.where(h.abs() < apart.abs() / 2, step + bend, step)
        before, t = (t, h, inverse), t + step
    return t


def _bracket(x: Tensor, k: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """Shifts (... 1) that enclose the solution of every row but for half a gap."""
    whole = k.floor()
    # at most ceil(k) scores lie above the lower of the two around the cut, at least that many above the other
    others = ((x != -math.inf).sum(-1, True) + 1 - k.ceil()).clamp(min=1)
    least = torch.where(k > whole, k - whole, 1.0) / others
    return curve.quantile(least).to(x.dtype), curve.quantile(k / (whole + 1)).to(x.dtype)


def _bracketed(at: Cut, curve: Curve, around: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """The best of ``steps`` shifts: Newton's where they stay inside the bracket, its middle otherwise."""
    gap, t = at.gap.clamp(max=SATURATED) + 1e-3, torch.zeros_like(at.center)
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
        inside = (newton >= low) & (newton <= high) & (step % 3 < 2)
        t = torch.where(inside, newton, middle)
    return torch.where(surplus.isnan(), surplus, best)


def spread_rest(
    p: Tensor, k: Number, v: Tensor, slope: Tensor, t: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask moved along its density v to first order, so that its float64 sum is k, and its shift.

    The slope, the sum of v, is above 0. The shift is float64: rounding it would show in the balance.
    """
    rest = (k - p.sum(-1, True, dtype=torch.float64)) / slope
    return torch.addcmul(p, v, rest.to(p.dtype), out=out).clamp_(0, 1), t + rest
