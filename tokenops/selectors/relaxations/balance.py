r"""What is lacked above the cut and had below it, and where the two are equal if the tails are exponential.

A is the sum over the kept of 1 - p, B the sum over the dropped of p. Where the hazards of a curve are
bounded (logistic, Laplace) the *log-balance* :math:`H = \log B - \log A` has a slope in [1, 2] for any
scores and is nearly a line, so that a few points of it tell its root to rounding error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import Cut


def _sums(at: Cut, t: Tensor, curve: Curve, *shares: Tensor) -> tuple[Tensor, ...]:
    """The sums (... 1) of what is lacked, had, and their densities, with the score in the cut."""
    lack, have, down, up = (v.sum(-1, True) for v in shares)
    if at.part is None or at.rest is None:
        return lack, have, down, up
    here = curve.value(t)
    steep = curve.density(here)
    lack, have = lack + at.part * curve.survival(t), have + at.rest * here
    return lack, have, down + at.part * steep, up + at.rest * steep


def balance(at: Cut, t: Tensor, curve: Curve) -> tuple[Tensor, ...]:
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
    return _sums(at, t, curve, lack, have, down, up)


@dataclass(slots=True)
class Tails:
    """A cut seen in exponentials (... m): ``kept`` exp(above - distance), ``dropped`` exp(below - distance).

    With ``above`` and ``below`` of the cut they give exp(t - distance) at any shift t without another
    exponential for every score. No entry exceeds 1.
    """

    cut: Cut
    kept: Tensor
    dropped: Tensor


def tails(at: Cut) -> Tails:
    """The exponentials of every score, once."""
    return Tails(at, (at.above - at.kept).exp(), (at.below - at.dropped).exp())


def sides(at: Tails, t: Tensor, curve: Curve) -> tuple[Tensor, ...]:
    """What :func:`balance` returns, from the exponentials."""
    assert curve.of_exp is not None
    # what a kept score lacks is what a dropped one at the same distance has
    lack = curve.of_exp(at.kept * (-t - at.cut.above).exp())
    have = curve.of_exp(at.dropped * (t - at.cut.below).exp())
    return _sums(at.cut, t, curve, lack, have, curve.density(lack), curve.density(have))


def meeting(ratio: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    r"""The y (... 1) where two rational sides are equal.

    .. math:: \frac{a e^{-y}}{1 + r e^{-y}} = \frac{b e^{y}}{1 + s e^{y}}

    Shapes: ``ratio`` b/a, ``kept`` r, ``dropped`` s (... 1), none negative.
    """
    root = ratio.sqrt()
    # e^y solves a quadratic; of its logarithm no digit is lost, however unlike the sides are
    return -root.log() - torch.asinh((kept * root - dropped / root) / 2)


def _typical(m: Tensor, a: Tensor, a2: Tensor, e: Tensor) -> Tensor:
    r"""The size r (... 1) of one score like which a side behaves at shift e.

    .. math:: \frac{a e}{1 + r e} = \sum_i \frac{z_i e}{1 + z_i e}, \qquad 0 \le z_i \le 1

    Of the z are known their number m, sum a and sum of squares a2. The right side is least if some are equal
    and the others 0, largest if some are 1 and the others equal; r is that of the geometric mean of both.
    """
    rest, wide = (m - a).clamp(min=1e-30), (m - 2 * a + a2).clamp(min=1e-30)
    size, ones = ((a - a2) / rest).clamp(0, 1), torch.minimum(((m * a2 - a * a) / wide).clamp(min=0), m)
    # a e over the least that the sum can be, and over the most
    least = 1 + a2 / a * e
    most = torch.minimum(a / (ones / (1 + e) + (m - ones) * size / (1 + size * e)), least)
    # where e is small, r does not matter
    return (least.sqrt() * most.sqrt() - 1) / e.clamp(min=1e-3)


def start(at: Tails, masses: tuple[Tensor, Tensor]) -> Tensor:
    """A shift (... 1) from sum and mean square of the exponentials on either side.

    How many there are is as in ``masses``, k and n - k (... 1). Right where the tails are exponential and no
    score is near the threshold, and where the scores of a side are equal.
    """
    kept, dropped = ([v.sum(-1, True), (v * v).sum(-1, True)] for v in (at.kept, at.dropped))
    above, below, part, rest = at.cut.above, at.cut.below, at.cut.part, at.cut.rest
    if part is not None and rest is not None:
        kept, dropped = [v + part for v in kept], [v + rest for v in dropped]
    # a side may be empty: there any start will do
    least = torch.finfo(above.dtype).tiny ** 0.5
    (a, a2), (b, b2) = ([v.clamp(min=least) for v in side] for side in (kept, dropped))
    m, others = (v.to(above.dtype).clamp(min=least) for v in masses)
    near = (-(above + below) / 2).exp()
    t = meeting(b / a, near * (a2 / m).sqrt(), near * (b2 / others).sqrt())
    r, s = _typical(m, a, a2, near * (-t).exp()), _typical(others, b, b2, near * t.exp())
    return meeting(b / a, near * r, near * s) - (above - below) / 2


def balanced_shift(at: Tails, masses: tuple[Tensor, Tensor], curve: Curve, points: int) -> Tensor:
    """Where H is 0, seen from ``points`` values and slopes of its two sides.

    The first tell a rational function for each side, and where these meet. From the second on the inverse of
    H, which is close to a line, is the cubic through the last two.
    """
    t, before = start(at, masses), None
    for _ in range(points):
        lack, have, down, up = sides(at, t, curve)
        # no mask could tell what is this small
        settled = torch.minimum(lack, have) < torch.finfo(t.dtype).tiny ** 0.8
        h = torch.where(settled, 0.0, have.log() - lack.log())
        # mean hazards of either side: 0 only where a share is rounded to 1
        hazards = ((v / w).clamp(torch.finfo(t.dtype).eps, 1) for v, w in ((down, lack), (up, have)))
        kept, dropped = (torch.where(settled, 1.0, v) for v in hazards)
        inverse = 1 / (kept + dropped).clamp(min=1)
        if before is None:
            step = meeting(have / lack * (kept / dropped), 1 / kept - 1, 1 / dropped - 1)
            step = torch.where(settled, 0.0, step)
        else:
            step = _cubic(*before, t, h, inverse)
        before, t = (t, h, inverse), t + step
    return t


def _cubic(t0: Tensor, h0: Tensor, inverse0: Tensor, t: Tensor, h: Tensor, inverse: Tensor) -> Tensor:
    """The step from t to where the cubic for t(H) through both points and their slopes is at H = 0."""
    step, apart = -h * inverse, h - h0
    mean = (t - t0) / apart
    bend = (inverse - mean - (inverse - 2 * mean + inverse0) * h0 / apart) * h * (h / apart)
    # two points whose H differs by rounding do not say how it bends
    return torch.where(h.abs() < apart.abs() / 2, step + bend, step)
