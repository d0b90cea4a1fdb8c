"""Schedules: the weight of a loss, a temperature or a budget as a function of training progress in [0, 1]."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from numbers import Real

from tokenops.errors import TokenOpsError

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    r"""The same value all the way.

    .. math:: \lambda(p) = c

    >>> constant(0.5)(0.9)
    0.5
    """
    return lambda progress: value


def linear(start: float, end: float, *, begin: float = 0.0) -> Schedule:
    r"""``start`` until ``begin``, then a straight line to ``end`` at the last step.

    .. math:: \lambda(p) = a + (b - a)\,\max(0, p - p_0) / (1 - p_0)

    ``linear(0.1, 2.0)`` is VisionSelector's curriculum (arXiv 2510.16598, §3.3; its code ends at 3.0).

    Raises:
        TokenOpsError: ``begin`` outside [0, 1).

    >>> ramp = linear(0.0, 2.0, begin=0.5)
    >>> [ramp(p) for p in (0.0, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 1.0, 2.0]
    """
    if not 0.0 <= begin < 1.0:
        raise TokenOpsError("linear", "begin in [0, 1)", begin)
    return lambda progress: start + (end - start) * max(0.0, progress - begin) / (1.0 - begin)


def cosine(start: float, end: float) -> Schedule:
    r"""Half a cosine from ``start`` to ``end``: slow, fast, slow.

    .. math:: \lambda(p) = a + (b - a)\,\frac{1 - \cos \pi p}{2}

    >>> [round(cosine(0.0, 1.0)(p), 3) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0]
    """
    return lambda progress: start + (end - start) * (1.0 - math.cos(math.pi * progress)) / 2.0


def exponential(start: float, end: float) -> Schedule:
    r"""From ``start`` to ``end`` by equal factors: the usual way to lower a temperature.

    .. math:: \tau(p) = a\,(b / a)^p

    Raises:
        TokenOpsError: ``start`` or ``end`` not above 0.

    >>> cool = exponential(4.0, 0.25)
    >>> [cool(p) for p in (0.0, 0.5, 1.0)]
    [4.0, 1.0, 0.25]
    """
    for name, value in (("start", start), ("end", end)):
        if not 0 < value < math.inf:
            raise TokenOpsError("exponential", f"{name} > 0", value)
    return lambda progress: start ** (1.0 - progress) * end**progress


def log_uniform(low: float, high: float, *, seed: int = 0) -> Schedule:
    r"""A fresh draw at every step, small values as often as large ones: ratios a scorer is to serve.

    .. math:: \lambda(p) = a\,(b / a)^{U_p}, \qquad U_p \sim \mathcal U[0, 1), \qquad
        \mathrm E\,\lambda = \frac{b - a}{\ln(b / a)}

    U depends on the seed and p alone, so a resumed run continues exactly and every micro-batch of a step sees
    the same value.

    Raises:
        TokenOpsError: not 0 < ``low`` <= ``high``.

    >>> budget = log_uniform(0.05, 0.5)
    >>> budget(0.25) == budget(0.25), budget(0.25) == budget(0.5)
    (True, False)
    >>> sum(0.05 <= budget(i / 100) < 0.5 for i in range(100))
    100
    """
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in (low, high))
    if not numbers or not 0 < low <= high < math.inf:
        raise TokenOpsError("log_uniform", "0 < low <= high", (low, high))
    return lambda progress: low * (high / low) ** random.Random(f"{seed} {progress!r}").random()
