"""The threshold without ranking the scores: plain Newton steps, for eager CPU rows where they settle."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.solver import Number, may_look, spread_rest

SAMPLE = 512
"""Scores of a row that the first guess looks at."""
NEAR = 2.0
"""Temperatures between threshold and mean up to which rounding at the mean does no harm, at steepness 1."""


def _inside(k: Number, n: int) -> bool:
    share = k / n
    return bool(((share > 0) & (share < 1)).all()) if isinstance(share, Tensor) else 0 < share < 1


def easy_mask(
    x: Tensor, k: Number, tau: Number, mask: Tensor | None, curve: Curve
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What :func:`solve_mask` returns, where looking at the values spares work; None where it would not.

    No mask hides padding then. Scores of -inf do no harm: those that the guess meets end it, the others take
    no share of k, and if they are so many that k is all of the rest, the steps do not settle.
    """
    if mask is not None or x.numel() == 0 or not may_look(x):
        return None
    return quick(x, k, tau, curve) if _inside(k, x.shape[-1]) else None


class Easy(NamedTuple):
    """Rows of an eager CPU tensor without a mask, and what every try at them shares.

    ``center`` (... 1) is the mean of every so many scores, ``distance`` (... n) is (x - center)/tau and
    ``sample`` (... m) every so many of it.
    """

    x: Tensor
    k: Number
    tau: Number
    curve: Curve
    center: Tensor
    distance: Tensor
    sample: Tensor

    def at(self, t: Tensor, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and density at shift t (... 1); the buffers p and v (... n) may hold them."""
        torch.add(self.distance, t, out=p)
        if self.curve.refill is None:
            p = self.curve.value(p)
            return p, self.curve.density(p)
        self.curve.refill(p, v)
        return p, v


def quick(x: Tensor, k: Number, tau: Number, curve: Curve) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mask, centre and shift by Newton steps on the logarithm of the sum; None if they do not settle.

    For eager CPU tensors without a mask, 0 < k < n. The last sum is taken in float64 and what it
    lacks is spread to first order, so the mask sums to k as well as its dtype can say.
    """
    every = max(1, x.shape[-1] // SAMPLE)
    sample = x[..., ::every]
    center = sample.sum(-1, True).mul_(1 / sample.shape[-1])
    distance = x - center
    if isinstance(tau, Tensor) or tau != 1:
        distance = distance / tau
    rows = Easy(x, k, tau, curve, center, distance, distance[..., ::every])
    buffers = torch.empty_like(distance), torch.empty_like(distance)
    for guess in (_by_moments, _by_rank):
        if (found := _newton(rows, guess(rows), *buffers)) is not None:
            return found
    return None


def _by_moments(rows: Easy) -> Tensor:
    """The shift (... 1) if scores and curve together were normal."""
    sample, curve, share = rows.sample, rows.curve, rows.k / rows.x.shape[-1]
    spread = torch.linalg.vector_norm(sample, dim=-1, keepdim=True).mul_(sample.shape[-1] ** -0.5)
    if isinstance(share, Tensor):
        quantile = torch.special.ndtri(share).to(sample.dtype)
    else:
        quantile = NormalDist().inv_cdf(share)
    return spread.square_().add_(curve.variance).sqrt_().mul_(quantile).add_(curve.mean)


def _by_rank(rows: Easy) -> Tensor:
    """The shift (... 1) that puts the threshold on the sample's own quantile: tails may be heavy."""
    m = rows.sample.shape[-1]
    ranked = rows.sample.sort(-1, descending=True).values
    share = rows.k / rows.x.shape[-1]
    if isinstance(share, Tensor):
        return -ranked.gather(-1, (share * m).long())
    return -ranked[..., math.floor(share * m)].unsqueeze(-1)


def _newton(rows: Easy, t: Tensor, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Newton steps from shift t; a curve that bends may stop a step early and be moved to second order."""
    k = rows.k
    target = k.log().to(t.dtype) if isinstance(k, Tensor) else math.log(k)
    fine = _fine(rows.curve, t.dtype)
    for _ in range(6):
        p, v = rows.at(t, p, v)
        total, slope = p.sum(-1, True), v.sum(-1, True)
        step = (target - total.log()).mul_(total).div_(slope)
        furthest = float(step.abs().amax())
        if furthest < fine:
            return _finish(rows, t, step, p, v, slope)
        if not furthest < math.inf:
            return None
        t = t + step
    return None


def _fine(curve: Curve, dtype: torch.dtype) -> float:
    """A step so small that what is left of it shows in no digit once the mask is moved along its slope."""
    if not curve.smooth:
        return 1e-2
    if curve.bend is not None:
        return torch.finfo(dtype).eps ** (1 / 3)
    return 1e-9 if dtype == torch.float64 else 5e-4


def _finish(
    rows: Easy, t: Tensor, step: Tensor, p: Tensor, v: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Spread the last of k over the mask of shift t; ``step`` is what Newton would do next."""
    curve, k, center = rows.curve, rows.k, rows.center
    if float(t.abs().amax()) >= NEAR / curve.steepness:
        # seen from the threshold itself, x - center is exact where it matters
        center = center - t * rows.tau
        t = torch.zeros_like(t)
        rows = rows._replace(distance=(rows.x - center) / rows.tau)
        if (found := _settle(rows, t, p, v, _fine(curve, t.dtype))) is None:
            return None
        t, step, p, v, slope = found
    if not curve.smooth:
        # a first-order step may not cross a kink, unless it is as small as rounding
        if (found := _settle(rows, t, p, v, 8 * torch.finfo(p.dtype).eps)) is None:
            return None
        t, _, p, v, slope = found
    elif curve.bend is not None:
        p.addcmul_(v, curve.bend(p, step, rows.distance))
        t = t + step
    p, t = spread_rest(p, k, v, slope, t, out=p)
    return p, center, t


def _settle(
    rows: Easy, t: Tensor, p: Tensor, v: Tensor, fine: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """Shift, next step, mask, density and its sum, once the steps on the sum are below ``fine``."""
    for _ in range(4):
        p, v = rows.at(t, p, v)
        slope = v.sum(-1, True)
        step = ((rows.k - p.sum(-1, True, dtype=torch.float64)) / slope).to(p.dtype)
        furthest = float((step.abs() / (1 + t.abs())).amax())
        if furthest < fine:
            return t, step, p, v, slope
        if not furthest < math.inf:
            return None
        t = t + step
    return None
