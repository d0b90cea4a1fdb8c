"""Medians, quartiles, and an interval for the median that assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from statistics import median, quantiles
from typing import Any

CONFIDENCE = 0.95
TOO_FEW = "too few runs to tell"


@dataclass(frozen=True)
class Spread:
    """Measured values, in the order of the rounds.

    >>> spread = Spread((4.0, 1.0, 2.0, 3.0, 9.0))
    >>> spread.median, spread.quartiles
    (3.0, (2.0, 4.0))
    """

    values: tuple[float, ...]

    @cached_property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @cached_property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the values lies below the first, a quarter above the second."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = quantiles(self.values, n=4, method="inclusive")
        return low, high

    def as_dict(self) -> dict[str, Any]:
        """Median, quartiles and values.

        >>> Spread((1.0, 3.0)).as_dict()
        {'median': 2.0, 'quartiles': [1.5, 2.5], 'values': [1.0, 3.0]}
        """
        return {"median": self.median, "quartiles": list(self.quartiles), "values": list(self.values)}


@dataclass(frozen=True)
class Ratio:
    r"""Median of the ratios of paired runs, with the interval that holds the true median.

    .. math:: P(x_{(r)} \le m \le x_{(n+1-r)}) = 1 - 2^{1-n} \sum_{i<r} \binom{n}{i}

    for n independent ratios, whatever their distribution: r is the largest rank with at least 95 %. Fewer
    than six runs cannot give that; then the interval runs from the smallest to the largest ratio.

    Attributes:
        median: of the ratios.
        low, high: ends of the interval.
        confidence: probability of the formula.

    Raises:
        ValueError: different numbers of runs, or none.

    >>> ratio = Ratio.paired([2.0] * 3 + [4.0] * 4 + [6.0] * 2, [2.0] * 9)
    >>> ratio
    Ratio(median=2.0, low=1.0, high=3.0, confidence=0.9609375)
    >>> ratio.verdict
    'no difference'
    """

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def paired(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Of ``above[i] / below[i]``."""
        ratios = sorted(a / b for a, b in zip(above, below, strict=True))
        if not ratios:
            raise ValueError("a ratio of at least one pair of runs")
        n = len(ratios)
        rank = max([r for r in range(1, (n + 1) // 2 + 1) if _coverage(n, r) >= CONFIDENCE], default=1)
        return cls(median(ratios), ratios[rank - 1], ratios[n - rank], _coverage(n, rank))

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"``, or ``"no difference"`` where the interval holds 1.

        Below 95 % of confidence ``"too few runs to tell"``, whatever the interval.

        >>> Ratio.paired([1.01], [1.0]).verdict
        'too few runs to tell'
        """
        if self.confidence < CONFIDENCE:
            return TOO_FEW
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"

    def as_dict(self) -> dict[str, float]:
        """All four numbers.

        >>> Ratio(2.0, 1.0, 3.0, 0.96).as_dict()
        {'median': 2.0, 'low': 1.0, 'high': 3.0, 'confidence': 0.96}
        """
        return {"median": self.median, "low": self.low, "high": self.high, "confidence": self.confidence}


def _coverage(n: int, rank: int) -> float:
    return 1 - 2.0 ** (1 - n) * sum(comb(n, i) for i in range(rank))
