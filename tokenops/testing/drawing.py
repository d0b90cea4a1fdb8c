"""Small random inputs that Hypothesis chooses and shrinks, and the runner of the laws."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError

T = TypeVar("T")
Law = Callable[..., None]


def _hypothesis() -> Any:
    try:
        import hypothesis
        import hypothesis.strategies
    except ImportError:
        raise TokenOpsError("tokenops.testing", "hypothesis (pip install tokenops[dev])", "none") from None
    return hypothesis


class Draw:
    """What a law draws its inputs from: sizes shrink, tensors come from a drawn seed."""

    def __init__(self, data: Any) -> None:
        self._data, self._st = data, _hypothesis().strategies

    def assume(self, condition: bool) -> None:
        """Draw again unless the condition holds."""
        _hypothesis().assume(condition)

    def integer(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return self._data.draw(self._st.integers(low, high))

    def number(self, low: float, high: float) -> float:
        """A finite float, both ends included."""
        return self._data.draw(self._st.floats(low, high, allow_subnormal=False))

    def choice(self, *options: T) -> T:
        """One of the options; the first is the simplest."""
        return self._data.draw(self._st.sampled_from(options))

    def generator(self) -> torch.Generator:
        """A seeded generator."""
        return torch.Generator().manual_seed(self.integer(0, 2**31 - 1))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator(), dtype=torch.float64).to(dtype)

    def dyadic(self, *shape: int, most: int = 8) -> Tensor:
        """Multiples of 1/8 up to ``most``, in float32: with ties, and exact under shifts and sign changes."""
        return torch.randint(-8 * most, 8 * most + 1, shape, generator=self.generator()).float() / 8

    def distinct(self, b: int, n: int) -> Tensor:
        """Rows of distinct multiples of 1/8."""
        g = self.generator()
        return torch.stack([torch.randperm(4 * n, generator=g)[:n] for _ in range(b)]).float() / 8 - n / 4

    def mask(self, b: int, n: int) -> Tensor:
        """True for real tokens: ragged rows, padding anywhere, empty and full rows among them."""
        g = self.generator()
        share = torch.tensor([0.0, 0.5, 0.8, 1.0])[torch.randint(4, (b, 1), generator=g)]
        return torch.rand((b, n), generator=g) < share

    def permutation(self, n: int) -> Tensor:
        """A random order of n things."""
        return torch.randperm(n, generator=self.generator())


def hold(law: Law, *arguments: Any, **options: Any) -> None:
    """Run ``law(*arguments, draw, **options)`` on many drawn inputs.

    >>> def small(limit, draw):
    ...     assert draw.integer(0, 9) < limit
    >>> hold(small, 10)

    Raises:
        TokenOpsError: Hypothesis is not installed.
    """
    h = _hypothesis()

    @functools.wraps(law, assigned=("__name__", "__qualname__", "__module__", "__doc__"), updated=())
    def run(data: Any) -> None:
        law(*arguments, Draw(data), **options)

    del run.__wrapped__
    h.settings(deadline=None, report_multiple_bugs=False)(h.given(data=h.strategies.data())(run))()


def assert_close(got: Tensor, expected: Tensor, atol: float, *, exact_dtype: bool = False) -> None:
    """Equal to ``atol``; NaN equals NaN."""
    torch.testing.assert_close(got, expected, rtol=0, atol=atol, check_dtype=exact_dtype, equal_nan=True)


def signal(name: str, b: int, n: int) -> Tensor:
    """A plausible signal of the documented shape, the same for every row.

    Raises:
        TokenOpsError: a signal this suite knows nothing about.
    """
    if name.endswith("_attention"):
        return torch.linspace(1, 2, n).softmax(0).expand(b, n).clone()
    if name == "vision_keys":
        place = torch.arange(n, dtype=torch.float32)[:, None]
        return (place * torch.linspace(0.5, 2, 4)).sin().expand(b, n, 4).clone()
    if name == "segments":
        return (torch.arange(n) * 2 // max(1, n)).expand(b, n).clone()
    if name == "grid":
        width = max(1, round(n**0.5))
        place = torch.arange(n)
        return torch.stack([place * 0, place // width, place % width], -1).expand(b, n, 3).clone()
    raise TokenOpsError("tokenops.testing", "signals= with a maker (name, b, n) -> tensor", name)
