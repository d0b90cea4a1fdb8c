"""The threshold without ranking the scores: plain Newton steps, for eager CPU rows where they settle."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenops.eager import may_look
from tokenops.kernels.order import ascending
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import Number, valid_tokens
from tokenops.selectors.relaxations.solver import spread_rest

SAMPLE = 2048
"""Scores of a row that the first guess looks at."""
NEAR = 2.0
"""Temperatures between threshold and centre up to which rounding there does no harm, at steepness 1."""
LONG = 4096
"""Scores in a row from which a float64 copy costs more than two sums."""
FINE = {dtype: (8 * torch.finfo(dtype).eps) ** 0.5 for dtype in (torch.float32, torch.float64)}
"""A step whose square is rounding: moving the mask along its slope shows in no digit, at steepness 1/2."""


def _stride(n: int) -> int:
    """How many scores of a row stand for one that the guess looks at."""
    return max(1, n // SAMPLE)


def _inside(x: Tensor, k: Number, count: Tensor | None) -> bool:
    """Whether every row keeps some of its scores and drops others that are not -inf."""
    n = x.shape[-1]
    if count is not None:
        return bool(((count > k) & (k > 0)).all())
    low, high = (float(k.amin()) / n, float(k.amax()) / n) if isinstance(k, Tensor) else (k / n, k / n)
    # the guess meets -inf, or as good as surely does where it is all of the row beyond k
    seen = _stride(n) == 1 or high <= 0.5
    return low > 0 and high < 1 and (seen or float(x.amin()) > -math.inf)


def easy_mask(
    x: Tensor, k: Number, tau: Number, padded: bool, curve: Curve
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What :func:`solve_mask` returns, where looking at the values spares work; None where it would not.

    Scores of -inf take no share of k. With ``padded`` the guess knows of them; otherwise those that it meets
    end it.
    """
    if x.numel() == 0 or not may_look(x):
        return None
    count = valid_tokens(x).sum(-1, True) if padded else None
    return quick(x, k, tau, curve, count) if _inside(x, k, count) else None


def quick(
    x: Tensor, k: Number, tau: Number, curve: Curve, count: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mask, centre and shift by Newton steps on the logarithm of the sum; None if they do not settle.

    For eager CPU tensors, 0 < k < count, how many scores (... 1) are not -inf; None for all n. The last sum
    is taken in float64 and what it lacks is spread to first order, so the mask sums to k as well as its
    dtype can say.
    """
    sample = x[..., :: _stride(x.shape[-1])].contiguous()
    share = k / x.shape[-1] if count is None else k / count.double()
    buffers = torch.empty_like(x), torch.empty_like(x)
    for guess in (_by_moments, _by_rank):
        center = guess(sample, share, tau, curve, count is not None)
        if (found := _newton(Easy(x, k, tau, curve, *buffers), center)) is not None:
            return found or None
    return None


def _moments(sample: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance (... 1) of the scores, without padding of -inf."""
    if not padded:
        m = sample.shape[-1]
        mean = sample.sum(-1, True).mul_(1 / m)
        off = sample - mean
    else:
        gone = sample == -math.inf
        m = sample.shape[-1] - gone.sum(-1, True)
        mean = sample.masked_fill(gone, 0.0).sum(-1, True) / m
        off = (sample - mean).masked_fill_(gone, 0.0)
    return mean, torch.linalg.vector_norm(off, dim=-1, keepdim=True).square_().div_(m)


def _by_moments(sample: Tensor, share: Number, tau: Number, curve: Curve, padded: bool) -> Tensor:
    """The threshold (... 1) if scores and curve together were normal."""
    mean, spread = _moments(sample, padded)
    if isinstance(share, Tensor):
        quantile = torch.special.ndtri(share).to(sample.dtype)
    else:
        quantile = NormalDist().inv_cdf(share)
    spread = spread.add_(curve.variance * tau * tau).sqrt_().mul_(quantile)
    return mean - spread if curve.mean == 0 else mean - spread - curve.mean * tau


def _by_rank(sample: Tensor, share: Number, tau: Number, curve: Curve, padded: bool) -> Tensor:
    """The threshold (... 1) on the sample's own quantile: tails may be heavy."""
    m = sample.shape[-1]
    if isinstance(share, Tensor):
        real = valid_tokens(sample).sum(-1, True) if padded else m
        return ascending(sample).gather(-1, m - 1 - (share * real).long())
    kth = m - 1 - math.floor(share * m)
    return ascending(sample, kth)[..., kth : kth + 1]


class Easy(NamedTuple):
    """Rows of an eager CPU tensor, and room for their mask and its density."""

    x: Tensor
    k: Number
    tau: Number
    curve: Curve
    p: Tensor
    v: Tensor

    def at(self, center: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mask and density (... n) at the threshold center - t * tau; x - center is taken first."""
        p = torch.sub(self.x, center, out=self.p)
        if isinstance(self.tau, Tensor) or self.tau != 1:
            p.div_(self.tau)
        if t is not None:
            p.add_(t)
        if self.curve.refill is None:
            p = self.curve.value(p)
            return p, self.curve.density(p)
        self.curve.refill(p, self.v)
        return p, self.v


def _newton(rows: Easy, center: Tensor) -> tuple[Tensor, Tensor, Tensor] | Literal[False] | None:
    """Newton steps from a threshold, the last of them a move of the mask along its slope.

    None if they do not settle; False if they do, but a sum of so many shares cannot tell where.
    ``center`` follows the threshold where it goes far: x - center is exact where it matters then.
    """
    k, curve = rows.k, rows.curve
    target = k.log().to(center.dtype) if isinstance(k, Tensor) else math.log(k)
    first_order, near = FINE[center.dtype] * min(1.0, 0.5 / curve.steepness), NEAR / curve.steepness
    # a first-order step may not cross a kink: _settle goes on from here
    fine = first_order if curve.smooth else 1e-2
    t, moved, before = None, 0.0, math.inf
    for _ in range(6):
        p, v = rows.at(center, t)
        total, slope = p.sum(-1, True), v.sum(-1, True)
        step = (target - total.log()).mul_(total).div_(slope)
        furthest = float(torch.linalg.vector_norm(step, math.inf))
        if furthest < fine:
            doubt = float((total / slope).amax())  # what rounding of the sum does to the threshold, in eps
            if not doubt * torch.finfo(p.dtype).eps < first_order:
                return False
            return _finish(rows, center, t, p, v, slope, plain=doubt > 32)
        # steps that settle shrink from the first on
        if not furthest < before:
            return None
        t, moved, before = step if t is None else t + step, moved + furthest, furthest
        if moved >= near:
            center, t, moved = center - t * rows.tau, None, 0.0
    return None


def _finish(
    rows: Easy, center: Tensor, t: Tensor | None, p: Tensor, v: Tensor, slope: Tensor, plain: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Spread what is left of k over the mask of shift t, in place.

    With ``plain`` so few scores are in doubt that the sum may not be rounded on the way.
    """
    t = torch.zeros_like(center) if t is None else t
    if not rows.curve.smooth:
        # a first-order step may not cross a kink, unless it is as small as rounding
        if (found := _settle(rows, center, t)) is None:
            return None
        t, p, v, slope = found
    p, t = spread_rest(p, rows.k, v, slope, t, _total(p, plain), out=p)
    # the rest is far below 1, and so are hazards times it: no share leaves [0, 1]
    return p if rows.curve.balanced else p.clamp_(0, 1), center, t


def _total(p: Tensor, plain: bool) -> Tensor:
    """Every row's sum (... 1) in float64; of long rows sixteen numbers at a time, unless ``plain``."""
    n = p.shape[-1]
    if plain or n < LONG or p.dtype == torch.float64:
        return p.sum(-1, True, dtype=torch.float64)
    short = p[..., : n - n % 16].unflatten(-1, (16, -1)).sum(-2)
    return torch.cat([short, p[..., n - n % 16 :]], -1).sum(-1, True, dtype=torch.float64)


def _settle(rows: Easy, center: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Shift, mask, density and its sum, once the steps on the exact sum are as small as rounding."""
    fine = 8 * torch.finfo(t.dtype).eps
    for _ in range(4):
        p, v = rows.at(center, t)
        slope = v.sum(-1, True)
        step = ((rows.k - p.sum(-1, True, dtype=torch.float64)) / slope).to(p.dtype)
        furthest = float((step.abs() / (1 + t.abs())).amax())
        if furthest < fine:
            return t, p, v, slope
        if not furthest < math.inf:
            return None
        t = t + step
    return None
