"""Budgets: one rounding rule, for numbers and for tensors."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenops import TokenOpsError
from tokenops.budget import Budget, check_keep, keep_count, keep_counts

ratios = st.floats(0, 1, exclude_min=True, allow_nan=False)
counts = st.integers(1, 10**6)
sizes = st.integers(0, 10**5)


@given(st.one_of(ratios, counts), sizes)
def test_within_bounds(keep: float, n: int) -> None:
    assert min(1, n) <= keep_count(keep, n) <= n


@given(st.one_of(ratios, counts), sizes, sizes)
def test_more_tokens_never_keep_fewer(keep: float, n: int, m: int) -> None:
    assert (keep_count(keep, n) <= keep_count(keep, m)) or n > m


@given(st.one_of(ratios, counts), st.lists(sizes, max_size=8))
def test_tensor_and_number_agree(keep: float, n: list[int]) -> None:
    assert keep_counts(keep, torch.tensor(n, dtype=torch.long)).tolist() == [keep_count(keep, m) for m in n]


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 50))
def test_a_ratio_of_whole_tokens_is_exact(k: int, n: int, times: int) -> None:
    """k/n of n·times tokens is k·times, whatever the rounding of k/n."""
    if k <= n:
        assert keep_count(k / n, n * times) == k * times


@given(st.integers(1, 100), sizes)
def test_percentages_round_down(percent: int, n: int) -> None:
    assert keep_count(percent / 100, n) == min(n, max(1, math.floor(Fraction(percent, 100) * n)))


def test_one_is_everything_or_one_token() -> None:
    assert keep_count(1.0, 144) == 144
    assert keep_count(1, 144) == 1
    assert keep_counts(1.0, torch.tensor([[0, 7]])).tolist() == [[0, 7]]
    assert keep_counts(3, torch.tensor([0, 7])).tolist() == [0, 3]


@pytest.mark.parametrize("keep", [0, 0.0, -1, -0.2, 1.0001, math.nan, math.inf, True, False, "0.2", None, 1j])
def test_bad_budgets(keep: Any) -> None:
    for call in (check_keep, lambda k: keep_count(k, 3), lambda k: keep_counts(k, torch.ones(1))):
        with pytest.raises(TokenOpsError, match="keep must be a ratio"):
            call(keep)


def test_a_count_above_all_keeps_all() -> None:
    for keep in (2**63, 2**70, 10**400):
        assert keep_count(keep, 7) == 7
        assert keep_counts(keep, torch.tensor([0, 7])).tolist() == [0, 7]


@pytest.mark.parametrize("keep", [0.5, 3])
def test_fewer_than_no_tokens(keep: float) -> None:
    with pytest.raises(TokenOpsError, match="n >= 0 tokens, got -3"):
        keep_count(keep, -3)


def test_the_attribute_speaks_for_the_class_that_declares_it() -> None:
    class Tenth:
        keep = Budget()

    class Heir(Tenth):
        pass

    heir = Heir()
    assert isinstance(Heir.keep, Budget)
    assert not hasattr(heir, "keep")
    with pytest.raises(TokenOpsError, match="Tenth: keep must be a ratio"):
        heir.keep = 2.0
    heir.keep, other = 0.1, Tenth()
    other.keep = 3
    assert (heir.keep, other.keep) == (0.1, 3)


def test_numpy_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert check_keep(numpy.float32(0.5)) == 0.5
    assert type(check_keep(numpy.int64(3))) is int
