"""The sigmoid threshold beyond its contract: accuracy on hard rows, odd input, the solver's certificate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import easy, soft_topk
from tokenops.selectors.relaxations.balance import sides, tails
from tokenops.selectors.relaxations.sigmoid import LOGISTIC
from tokenops.selectors.relaxations.solver import solve
from tokenops.testing.drawing import Draw, assert_close, hold

FAMILIES = ("normal", "wide", "narrow", "ties", "outliers", "skewed", "steps", "gap")


def family(name: str, draw: Draw, b: int, n: int) -> Tensor:
    x = draw.normal(b, n)
    return {
        "normal": x,
        "wide": 100 * x,
        "narrow": 1e-3 * x,
        "ties": x.round(),
        "outliers": torch.where(x > 1.3, 300 + 30 * x, x),
        "skewed": x.abs() ** 6,
        "steps": torch.linspace(-40, 40, n).expand(b, n).round(decimals=-1) + 0 * x,
        "gap": x.sign() * 200 + x,
    }[name]


def bisected(x: Tensor, k: Tensor) -> Tensor:
    """The same mask by bisection in float64."""
    x, low, high = x.double(), -x.double().amax(-1) - 60, -x.double().amin(-1) + 60
    for _ in range(200):
        middle = (low + high) / 2
        small = (x + middle[:, None]).sigmoid().sum(-1) < k
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return (x + low[:, None]).sigmoid()


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_bisection(name: str) -> None:
    def law(draw: Draw) -> None:
        b, n = 3, draw.integer(2, 200)
        x, k = family(name, draw, b, n), torch.rand(b, generator=draw.generator()).double() * n
        k = torch.where(torch.rand(b, generator=draw.generator()) < 0.5, k.round(), k).clamp(1e-3, n - 1e-3)
        expected = bisected(x, k)
        solvable = (expected.sum(-1) - k).abs() < 1e-9 * k
        assert_close(soft_topk(x.double(), k)[solvable], expected[solvable], 1e-12)
        assert_close(soft_topk(x, k)[solvable], expected[solvable], 4e-7)

    hold(law)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_last_step_certifies_the_root(name: str, dtype: torch.dtype, bound: float) -> None:
    def law(draw: Draw) -> None:
        n = draw.integer(2, 200)
        x = family(name, draw, 2, n).to(dtype)
        k = torch.tensor([[draw.integer(1, n - 1) - draw.number(0, 0.99)]])
        at, t = solve(x, k.double().expand(2, 1), torch.ones(2, 1, dtype=dtype), LOGISTIC)
        lack, have, down, up = sides(tails(at), t, LOGISTIC)
        slope = torch.where((lack > 0) & (have > 0), down / lack + up / have, 1.0)
        h = torch.where((lack > 0) & (have > 0), have.log() - lack.log(), 0.0)
        assert ((slope > 1 - 1e-5) & (slope < 2 + 1e-5)).all()
        assert t.isfinite().all()
        assert float(h.abs().max()) < bound * max(1.0, float(x.abs().max()) / 10)

    hold(law)


def test_many_tokens() -> None:
    x = torch.randn(1, 6828) * 5
    p = soft_topk(x, 1365.6)
    assert_close(p, bisected(x, torch.tensor([1365.6])), 1e-6)
    assert float(p.double().sum()) == pytest.approx(1365.6, rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([3e4, 2e4, 1e4, -1e4], 2, [1, 1, 0, 0]),
        ([3e4, 2e4, 1e4, -1e4], 1.5, [1, 0.5, 0, 0]),
        ([3e38, -3e38, 0, -3e38], 2, [1, 0, 1, 0]),
        ([math.inf, 5.0, 5.0, -math.inf], 2, [1, 0.5, 0.5, 0]),
        ([math.inf, math.inf, 0.0, 0.0], 1, [0.5, 0.5, 0, 0]),
        ([-math.inf] * 4, 2, [0, 0, 0, 0]),
        ([7.0, 7.0, 7.0, 7.0], 3, [0.75] * 4),
        ([0.0, 0.0, 1e6, 1e6], 3, [0.5, 0.5, 1, 1]),
    ],
)
def test_extremes(scores: list[float], k: float, expected: list[float]) -> None:
    x = torch.tensor(scores, requires_grad=True)
    p = soft_topk(x, k)
    assert_close(p.detach(), torch.tensor(expected, dtype=torch.float32), 1e-6)
    (grad,) = torch.autograd.grad((p * torch.arange(4)).sum(), x)
    assert grad.isfinite().all()


def test_temperature_limits() -> None:
    x = torch.tensor([3.0, 1.0, 2.0, 0.0])
    assert_close(soft_topk(x, 2, temperature=1e-4), torch.tensor([1.0, 0.0, 1.0, 0.0]), 1e-6)
    assert_close(soft_topk(x, 2, temperature=1e6), torch.full((4,), 0.5), 1e-5)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("k", [0, 1.5, 3])
def test_rows_without_a_temperature_are_nan(k: float, hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # a row of NaN has the others ranked, so the row alone is to be ranked as well
    monkeypatch.setattr(easy, "quick", lambda *_: None)
    x = torch.randn(4, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]] * 4)
    tau = torch.tensor([0.0, 1.0, -2.0, math.nan])
    p = soft_topk(x, k, temperature=tau, mask=mask, hard=hard)
    assert p[[0, 2, 3]][:, :2].isnan().all()
    assert_close(p[1], soft_topk(x[1], k, mask=mask[1], hard=hard), 0)
    assert not p[:, 2].any()
    (grad,) = torch.autograd.grad((p * torch.arange(3)).sum(), x)
    assert grad[1].isfinite().all()


def test_a_temperature_of_double_scores() -> None:
    assert_close(soft_topk(torch.randn(4).double(), 2, temperature=1e300), torch.full((4,), 0.5).double(), 0)


def test_k_per_row_broadcasts() -> None:
    x = torch.randn(2, 3, 8)
    for k in (torch.tensor(2), torch.tensor([1, 2, 3]), torch.tensor([[1.5], [6]]), torch.full((2, 3), 4)):
        assert_close(soft_topk(x, k).sum(-1), k.expand(2, 3), 1e-5)


def test_k_gets_a_gradient_in_its_own_shape() -> None:
    x, k = torch.randn(2, 3, 8), torch.tensor([1.0, 2.0, 3.5], requires_grad=True)
    soft_topk(x, k).sum().backward()
    assert k.grad is not None
    assert_close(k.grad, torch.full((3,), 2.0), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_output_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 8, dtype=torch.float64).to(dtype)
    assert soft_topk(x, 3).dtype == torch.promote_types(dtype, torch.float32)
    assert soft_topk(x, 3, out_dtype=dtype).dtype == dtype
    x.requires_grad_()
    soft_topk(x, 3)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    ("scores", "arguments"),
    [
        (torch.ones(3).long(), {"k": 1}),
        (torch.tensor(1.0), {"k": 1}),
        ([1.0, 2.0], {"k": 1}),
        (torch.ones(2, 3), {"k": "1"}),
        (torch.ones(2, 3), {"k": True}),
        (torch.ones(2, 3), {"k": math.nan}),
        (torch.ones(2, 3), {"k": torch.ones(3)}),
        (torch.ones(2, 3), {"k": torch.ones(2, 1)}),
        (torch.ones(2, 3), {"k": torch.ones(2, dtype=torch.bool)}),
        (torch.ones(2, 3), {"k": 1, "temperature": 0.0}),
        (torch.ones(2, 3), {"k": 1, "temperature": -1}),
        (torch.ones(2, 3), {"k": 1, "temperature": math.inf}),
        (torch.ones(2, 3), {"k": 1, "temperature": 1e300}),
        (torch.ones(2, 3), {"k": 1, "temperature": 1e-50}),
        (torch.ones(2, 3), {"k": 1, "temperature": 10**400}),
        (torch.ones(2, 3), {"k": 1, "temperature": torch.ones(3)}),
        (torch.ones(2, 3), {"k": 1, "mask": torch.ones(2, 3)}),
        (torch.ones(2, 3), {"k": 1, "mask": torch.ones(3, dtype=torch.bool)}),
        (torch.ones(2, 3), {"k": 1, "dim": 2}),
        (torch.ones(2, 3), {"k": 1, "out_dtype": torch.long}),
    ],
)
def test_bad_input(scores: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(TokenOpsError, match="soft_topk"):
        soft_topk(scores, **arguments)


@pytest.mark.parametrize("method", ["sigmoid", "laplace", "gaussian", "capped_simplex", "entmax15"])
def test_what_comes_back_at_minus_infinity_stays_there(method: str) -> None:
    x = torch.tensor([1.0, 0.25, 0.0, -math.inf], requires_grad=True)
    soft_topk(x, 1.5, method=method).backward(torch.tensor([1.0, 2.0, 3.0, math.nan]))
    alone = torch.tensor([1.0, 0.25, 0.0], requires_grad=True)
    soft_topk(alone, 1.5, method=method).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert alone.grad is not None
    assert_close(x.grad, torch.cat([alone.grad, torch.zeros(1)]), 1e-6)


def test_nothing_of_nothing() -> None:
    x = torch.tensor([[3.0, 2.0, 1.0]])
    for ratio in (0.0, torch.tensor([0.0])):
        assert not soft_topk(x, ratio=ratio, hard=True).any()
    assert float(soft_topk(x, ratio=0.01, hard=True).sum()) == 1.0
    assert float(soft_topk(x, 5e-324).sum()) < 1e-6
