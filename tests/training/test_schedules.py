"""Curricula: values, bounds, direction, errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenops import TokenOpsError
from tokenops.training import Schedule, constant, cosine, exponential, linear, log_uniform

value = st.floats(-10, 10)
progress = st.floats(0, 1)


def inside(x: float, a: float, b: float) -> bool:
    return min(a, b) - 1e-9 <= x <= max(a, b) + 1e-9


def test_the_papers_curriculum() -> None:
    ramp = linear(0.1, 2.0)
    assert [ramp(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 1.05, 2.0])


@given(value, progress)
def test_constant(v: float, p: float) -> None:
    assert constant(v)(p) == v


@given(value, value, st.floats(0, 0.99), progress, progress)
def test_linear(a: float, b: float, begin: float, p: float, q: float) -> None:
    ramp = linear(a, b, begin=begin)
    assert ramp(0.0) == a
    assert ramp(begin) == a
    assert ramp(1.0) == pytest.approx(b, abs=1e-9)
    monotone_and_bounded(ramp, a, b, p, q)
    middle = ramp((begin + 1) / 2)
    assert middle == pytest.approx((a + b) / 2, abs=1e-9)


@given(value, value, progress, progress)
def test_cosine(a: float, b: float, p: float, q: float) -> None:
    curve = cosine(a, b)
    assert curve(0.0) == a
    assert curve(1.0) == pytest.approx(b, abs=1e-9)
    monotone_and_bounded(curve, a, b, p, q)
    assert curve(p) + curve(1 - p) == pytest.approx(a + b, abs=1e-9)
    assert abs(curve(1e-3) - a) < abs(linear(a, b)(1e-3) - a) + 1e-12


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), progress, progress)
def test_exponential(a: float, b: float, p: float, q: float) -> None:
    curve = exponential(a, b)
    assert curve(0.0) == a
    assert curve(1.0) == b
    assert curve(p) * curve(1 - p) == pytest.approx(a * b)
    assert math.log(curve(p)) == pytest.approx(linear(math.log(a), math.log(b))(p), abs=1e-9)
    early, late = curve(min(p, q)), curve(max(p, q))
    assert (late - early) * (b - a) >= -1e-9


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (-1.0, -2.0), (math.nan, 1.0), (1.0, math.inf)])
def test_exponential_needs_positive_ends(a: float, b: float) -> None:
    with pytest.raises(TokenOpsError, match="exponential"):
        exponential(a, b)


def monotone_and_bounded(schedule: Schedule, a: float, b: float, p: float, q: float) -> None:
    assert inside(schedule(p), a, b)
    early, late = schedule(min(p, q)), schedule(max(p, q))
    assert (late - early) * (b - a) >= -1e-9


@pytest.mark.parametrize("begin", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_begin_outside_the_run(begin: float) -> None:
    with pytest.raises(TokenOpsError, match="begin"):
        linear(0.0, 1.0, begin=begin)


@given(st.floats(1e-3, 1), st.floats(1, 1e3), st.integers(0, 9))
def test_log_uniform(low: float, factor: float, seed: int) -> None:
    high = low * factor
    drawn = [log_uniform(low, high, seed=seed)(i / 200) for i in range(200)]
    assert all(low * (1 - 1e-12) <= value <= high * (1 + 1e-12) for value in drawn)
    assert drawn == [log_uniform(low, high, seed=seed)(i / 200) for i in range(200)]
    middle = sum(math.log(value) for value in drawn) / 200
    # 5 standard errors of a mean of 200 uniform draws
    assert abs(middle - (math.log(low) + math.log(high)) / 2) <= 0.103 * math.log(factor) + 1e-9


def test_log_uniform_seeds_differ() -> None:
    assert log_uniform(1, 2, seed=0)(0.5) != log_uniform(1, 2, seed=1)(0.5)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0), ("a", 1), (True, 2)]
)
def test_log_uniform_bad_input(low: float, high: float) -> None:
    with pytest.raises(TokenOpsError, match="0 < low <= high"):
        log_uniform(low, high)
