"""A curve turns the distance of a score from the threshold, in temperatures, into the share that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Curve:
    r"""A member of the threshold family: a distribution function C.

    .. math:: p_i = C\!\left(\frac{x_i - \nu}{\tau}\right), \qquad C(-\infty) = 0, \quad C(\infty) = 1

    Attributes:
        name: what :func:`soft_topk` calls it.
        value: C(u), non-decreasing from 0 to 1; at infinity 0 or 1, or NaN.
        density: its derivative c, as a differentiable function of p = C(u).
        quantile: the inverse of C on (0, 1).
        mean, variance: of a normal distribution close to it, for the first guess of the threshold.
        steepness: the largest density; the mask's Jacobian has no larger norm than this over the temperature.
        symmetric: C(-u) = 1 - C(u), so ``1 - f(x, k) = f(-x, n - k)`` and the threshold is where p = 1/2.
        of_exp: C as a function of :math:`e^u`, on [0, inf). Only for a curve whose hazards c/C and c/(1-C)
            add up to at least 1, neither above 1: the slope of the log-balance is in [1, 2] everywhere
            then, and steps on it need no bracket. Used where the curve is symmetric; ``value`` may not be
            NaN at infinity. Optional, for speed.
        points: with ``of_exp``, how many points of the log-balance leave its root right to rounding in
            float32 for any scores but for groups of thousands of equal ones; float64 takes one more, and
            so do rows of more than 4,096.
        smooth: c is continuous.
        refill: (u, v) -> None, turns u into p = C(u) and fills v with c(p), in place; optional, for speed.

    >>> from tokenops.selectors.relaxations.sigmoid import LOGISTIC
    >>> LOGISTIC.name, LOGISTIC.steepness
    ('sigmoid', 0.25)
    >>> import torch
    >>> LOGISTIC.value(torch.tensor(2.0)), LOGISTIC.survival(torch.tensor(2.0))
    (tensor(0.8808), tensor(0.1192))
    """

    name: str
    value: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]
    quantile: Callable[[Tensor], Tensor]
    variance: float
    steepness: float
    mean: float = 0.0
    symmetric: bool = True
    of_exp: Callable[[Tensor], Tensor] | None = None
    points: int = 3
    smooth: bool = True
    refill: Callable[[Tensor, Tensor], Any] | None = None

    def survival(self, u: Tensor) -> Tensor:
        """1 - C(u), without cancellation where C is symmetric."""
        return self.value(-u) if self.symmetric else 1 - self.value(u)

    @property
    def balanced(self) -> bool:
        """Whether the threshold is found where the log-balance is 0.

        >>> from tokenops.selectors.relaxations.gaussian import GAUSSIAN
        >>> from tokenops.selectors.relaxations.sigmoid import LOGISTIC
        >>> LOGISTIC.balanced, GAUSSIAN.balanced
        (True, False)
        """
        return self.symmetric and self.of_exp is not None
