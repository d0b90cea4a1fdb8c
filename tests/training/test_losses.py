"""The soft–hard losses alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import hard_topk, soft_topk
from tokenops.training import soft_hard_bce, soft_hard_gap


def example(
    b: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    soft = torch.rand(b, n, generator=g, dtype=torch.float64).to(dtype)
    hard = torch.rand(b, n, generator=g) < 0.4
    mask = torch.rand(b, n, generator=g) < 0.8
    return soft, hard & mask, mask


def by_hand(soft: Tensor, hard: Tensor, mask: Tensor, weight: list[float] | None = None) -> float:
    """Plain loops over images and tokens."""
    images = []
    for m, h, real in zip(soft.tolist(), hard.tolist(), mask.tolist(), strict=True):
        each = [-math.log(p if keep else 1 - p) for p, keep, r in zip(m, h, real, strict=True) if r]
        images.append(sum(each) / len(each) if each else None)
    if weight is None:
        there = [x for x in images if x is not None]
        return sum(there) / max(1, len(there))
    return sum(w * (x or 0.0) for w, x in zip(weight, images, strict=True))


@given(st.integers(0, 4), st.integers(0, 9), st.integers(0, 99))
def test_equal_to_loops(b: int, n: int, seed: int) -> None:
    soft, hard, mask = example(b, n, seed, torch.float64)
    weight = torch.rand(b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert soft_hard_bce(soft, hard, mask).item() == pytest.approx(by_hand(soft, hard, mask), abs=1e-12)
    weighted = soft_hard_bce(soft, hard, mask, weight)
    assert weighted.item() == pytest.approx(by_hand(soft, hard, mask, weight.tolist()), abs=1e-12)
    real = [
        (s - float(h)).abs().item() for s, h, r in zip(soft[mask], hard[mask], mask[mask], strict=True) if r
    ]
    assert soft_hard_gap(soft, hard, mask).item() == pytest.approx(sum(real) / max(1, len(real)), abs=1e-12)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_bounds(b: int, n: int, seed: int) -> None:
    soft, hard, mask = example(b, n, seed)
    assert soft_hard_bce(soft, hard, mask) >= 0
    assert 0 <= soft_hard_gap(soft, hard, mask) <= 1
    assert soft_hard_bce(hard.float(), hard, mask) == 0
    assert soft_hard_gap(hard.float(), hard, mask) == 0
    opposite = (~hard).float()
    assert soft_hard_bce(opposite, hard, mask) == pytest.approx(100.0 if mask.any() else 0.0)


def test_a_large_image_counts_like_a_small_one() -> None:
    soft = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9]])
    hard = torch.tensor([[True, False, False, False], [True] * 4])
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    assert soft_hard_bce(soft, hard, mask).item() == pytest.approx((math.log(2) - math.log(0.9)) / 2)
    assert soft_hard_gap(soft, hard, mask).item() == pytest.approx(0.9 / 5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -3.0, 7.0])
def test_padding_holds_anything(poison: float) -> None:
    soft, hard, mask = example(3, 6)
    dirty = soft.masked_fill(~mask, poison).requires_grad_()
    loss = soft_hard_bce(dirty, hard | ~mask, mask)
    loss.backward()
    assert loss == soft_hard_bce(soft, hard, mask)
    assert soft_hard_gap(dirty, hard | ~mask, mask) == soft_hard_gap(soft, hard, mask)
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~mask] == 0).all()


def test_nan_comes_through() -> None:
    soft, hard, mask = example(3, 6)
    soft[1, mask[1].nonzero()[0]] = torch.nan
    assert soft_hard_bce(soft, hard, mask).isnan()
    assert soft_hard_gap(soft, hard, mask).isnan()
    assert soft_hard_bce(soft[[0, 2]], hard[[0, 2]], mask[[0, 2]]).isfinite()


def test_gradient_flows_to_soft_only_and_is_right() -> None:
    soft, hard, mask = example(3, 5, dtype=torch.float64)
    soft = (0.05 + 0.9 * soft).requires_grad_()
    weight = torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: soft_hard_bce(s, hard, mask), soft)
    assert torch.autograd.gradcheck(lambda s: soft_hard_bce(s, hard, mask, weight), soft)
    scores = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    full = torch.ones(2, 6, dtype=torch.bool)

    def through(scores: Tensor) -> Tensor:
        return soft_hard_bce(soft_topk(scores, 2), hard_topk(scores, 2), full)

    assert torch.autograd.gradcheck(through, scores)
    assert not soft_hard_bce(soft.detach(), hard, mask).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    soft, hard, mask = example(3, 6)
    low = soft.to(dtype).requires_grad_()
    loss = soft_hard_bce(low, hard, mask)
    loss.backward()
    assert loss.dtype == soft_hard_gap(low, hard, mask).dtype == torch.float32
    assert loss == soft_hard_bce(low.detach().float(), hard, mask)
    assert low.grad is not None
    assert low.grad.dtype == dtype
    assert soft_hard_bce(soft.double(), hard, mask).dtype == torch.float64


def test_under_autocast() -> None:
    soft, hard, mask = example(3, 6)
    plain = soft_hard_bce(soft, hard, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert soft_hard_bce(soft, hard, mask) == plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="autocast refuses BCE on GPUs only")
def test_under_autocast_on_a_gpu() -> None:
    values = [v.cuda() for v in example(3, 6)]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert soft_hard_bce(*values).item() == pytest.approx(soft_hard_bce(*example(3, 6)).item(), rel=1e-5)


def test_autocast_is_off_around_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would refuse, seen from the CPU."""
    seen: list[bool] = []
    real = torch.nn.functional.binary_cross_entropy

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(*args, **kwargs)

    monkeypatch.setattr("tokenops.training.losses.binary_cross_entropy", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        soft_hard_bce(*example(1, 3))
    assert seen == [False]


def test_errors() -> None:
    soft, hard, mask = example(2, 4)
    for wrong in (
        (soft[:1], hard, mask),
        (soft, hard[:, :2], mask),
        (soft, hard, mask[0]),
        (soft[0], hard[0], mask[0]),
    ):
        for loss in (soft_hard_bce, soft_hard_gap):
            with pytest.raises(TokenOpsError, match="one shape"):
                loss(*wrong)
    for wrong in ((soft, hard.float(), mask), (soft, hard, mask.long())):
        for loss in (soft_hard_bce, soft_hard_gap):
            with pytest.raises(TokenOpsError, match="bool"):
                loss(*wrong)
    for weight in (torch.ones(3), torch.ones(2, 1), torch.ones(())):
        with pytest.raises(TokenOpsError, match="weight"):
            soft_hard_bce(soft, hard, mask, weight)
