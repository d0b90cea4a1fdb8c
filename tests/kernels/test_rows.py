"""Row kernels against their loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenops.kernels.rows import gather_rows, pool_rows, put_rows, reference
from tokenops.testing import check_kernel
from tokenops.testing.drawing import Draw

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _index(draw: Draw, b: int, n: int, k: int) -> torch.Tensor:
    """Unique positions per row, any order."""
    return torch.stack([draw.permutation(n)[:k] for _ in range(b)])


def _x(draw: Draw, b: int, n: int) -> torch.Tensor:
    trailing = draw.choice((), (3,), (2, 3), (0,))
    return draw.normal(b, n, *trailing).to(draw.choice(*DTYPES))


def gather_case(draw: Draw) -> Any:
    b, n = draw.integer(1, 3), draw.integer(1, 7)
    index = torch.randint(n, (b, draw.integer(0, 9)), generator=draw.generator())
    return (_x(draw, b, n), index), {}


def put_case(draw: Draw) -> Any:
    b, n = draw.integer(1, 3), draw.integer(1, 7)
    k = draw.integer(0, n)
    into = _x(draw, b, n)
    valid = torch.rand(b, k, generator=draw.generator()) < 0.7
    y = draw.normal(b, k, *into.shape[2:]).to(into.dtype)
    return (into, _index(draw, b, n, k), valid, y), {}


def pool_case(draw: Draw) -> Any:
    b, n, k = draw.integer(1, 3), draw.integer(1, 7), draw.integer(1, 5)
    group = torch.randint(-1, k, (b, n), generator=draw.generator())
    return (_x(draw, b, n), group, draw.normal(b, n).abs(), k), {}


@pytest.mark.parametrize(
    ("kernel", "case"), [(gather_rows, gather_case), (put_rows, put_case), (pool_rows, pool_case)]
)
def test_equals_the_loops(kernel: Any, case: Any) -> None:
    check_kernel(kernel, case, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.int32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.arange(12).view(2, 6).to(dtype)
    index, valid = torch.tensor([[5, 0], [1, 2]]), torch.tensor([[True, False], [True, True]])
    assert torch.equal(gather_rows(x, index), reference.gather_rows(x, index))
    y = torch.ones(2, 2, dtype=dtype)
    assert torch.equal(put_rows(x, index, valid, y), reference.put_rows(x, index, valid, y))


def test_gradients_are_exact() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    index, valid = torch.tensor([[4, 0], [1, 2]]), torch.tensor([[True, False], [True, True]])
    group = torch.tensor([[0, 1, -1, 1, 0], [1, 1, 0, -1, -1]])
    for function, arguments in (
        (lambda x: gather_rows(x, index), (x,)),
        (lambda x, y: put_rows(x, index, valid, y), (x, y)),
        (lambda x, w: pool_rows(x, group, w, 2), (x, w)),
    ):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)


def test_left_out_tokens_may_hold_anything() -> None:
    x = torch.tensor([[[1.0], [float("nan")], [3.0]]], requires_grad=True)
    weight = torch.tensor([[1.0, float("inf"), 1.0]], requires_grad=True)
    total, mass = pool_rows(x, torch.tensor([[0, -1, 0]]), weight, 1)
    total.sum().backward()
    assert total.item() == 4
    assert mass.item() == 2
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 0, 1]
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1, 0, 3]


@pytest.mark.parametrize(("b", "n", "k"), [(0, 4, 2), (2, 0, 0), (2, 4, 0), (0, 0, 0)])
def test_empty(b: int, n: int, k: int) -> None:
    x, index = torch.randn(b, n, 3), torch.zeros(b, k, dtype=torch.long)
    assert gather_rows(x, index).shape == (b, k, 3)
    assert torch.equal(put_rows(x, index, index > 0, torch.randn(b, k, 3)), x)
    total, mass = pool_rows(x, torch.full((b, n), -1), torch.ones(b, n), k)
    assert total.shape == (b, k, 3)
    assert mass.shape == (b, k)


def test_inputs_are_not_changed() -> None:
    into = torch.randn(1, 4, 2)
    before = into.clone()
    put_rows(into, torch.tensor([[1]]), torch.tensor([[True]]), torch.zeros(1, 1, 2))
    assert torch.equal(into, before)


def test_strided_input() -> None:
    x = torch.randn(3, 5, 2).transpose(0, 1)
    index = torch.tensor([[0, 2]] * 5)
    assert torch.equal(gather_rows(x, index), reference.gather_rows(x, index))
