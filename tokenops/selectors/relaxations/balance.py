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


def far_start(at: Tails) -> Tensor:
    """Where H is 0 if both tails of the curve are exponential and no score is near the threshold."""
    kept, dropped = at.kept.sum(-1, True), at.dropped.sum(-1, True)
    if at.cut.part is not None and at.cut.rest is not None:
        kept, dropped = kept + at.cut.part, dropped + at.cut.rest
    # a side may be empty: there any start will do
    tiny = torch.finfo(kept.dtype).tiny
    kept, dropped = (v.clamp(min=tiny).log() for v in (kept, dropped))
    return ((kept - dropped) - (at.cut.above - at.cut.below)) / 2


def log_ratio(at: Tails, t: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """H and its slope; 0 and 1 where a side is so small that no mask could tell."""
    assert curve.of_exp is not None
    # what a kept score lacks is what a dropped one at the same distance has
    lack = curve.of_exp(at.kept * (-t - at.cut.above).exp())
    have = curve.of_exp(at.dropped * (t - at.cut.below).exp())
    lack, have, down, up = _sums(at.cut, t, curve, lack, have, curve.density(lack), curve.density(have))
    least = torch.finfo(t.dtype).tiny ** 0.8
    settled = (lack < least) | (have < least)
    h, slope = have.log() - lack.log(), down / lack + up / have
    return torch.where(settled, 0.0, h), torch.where(settled, 1.0, slope)


def balanced_shift(at: Tails, curve: Curve, points: int) -> Tensor:
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
