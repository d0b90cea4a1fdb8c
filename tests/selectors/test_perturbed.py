"""Perturbed Top-K: an unbiased gradient, its memory, its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.selectors.relaxations.perturbed import perturbed_topk
from tokenops.testing.drawing import assert_close
from tokenops.testing.inclusion import inclusion
from tokenops.testing.samplers import seeded


def test_a_pair_in_closed_form() -> None:
    rows, sigma = 100_000, 0.7
    x = torch.tensor([0.3, -0.2]).expand(rows, 2).clone().requires_grad_()
    y = perturbed_topk(x, 1, samples=4, sigma=sigma, generator=seeded(0))
    y[:, 0].sum().backward()
    assert x.grad is not None
    gap = 0.5 / (sigma * math.sqrt(2))
    slope = math.exp(-gap * gap / 2) / math.sqrt(2 * math.pi) / (sigma * math.sqrt(2))
    for got, expected in ((y[:, 0].detach(), math.erf(gap / math.sqrt(2)) / 2 + 0.5), (x.grad[:, 0], slope)):
        assert abs(float(got.mean()) - expected) <= 5 * float(got.std()) / math.sqrt(rows)


@pytest.mark.parametrize("noise", ["gaussian", "gumbel"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("samples", [2, 5])
def test_the_gradient_is_unbiased(noise: Any, k: int, samples: int) -> None:
    rows, g = 100_000, torch.tensor([1.0, -2.0, 0.5])
    point = torch.tensor([0.4, 0.0, -0.7], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    exact = (inclusion(point, k, noise=noise, scale=scale) * g).sum()
    expected = torch.autograd.grad(exact, (point, scale))
    x = point.detach().float().expand(rows, 3).clone().requires_grad_()
    sigma = torch.full((rows,), 0.8, requires_grad=True)
    y = perturbed_topk(x, k, samples=samples, sigma=sigma, noise=noise, generator=seeded(0))
    for got, wanted in zip(torch.autograd.grad((y * g).sum(), (x, sigma)), expected, strict=True):
        allowed = 5 * got.double().std(0) / math.sqrt(rows)
        assert ((got.double().mean(0) - wanted).abs() <= allowed).all()


def test_the_gradient_ignores_a_constant() -> None:
    x, g = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    grads = [
        torch.autograd.grad((perturbed_topk(x, 3, generator=seeded(2)) * (g + c)).sum(), x)[0]
        for c in (0.0, 100.0)
    ]
    assert_close(grads[1], grads[0], 1e-4)


def test_it_keeps_five_bytes_per_sample() -> None:
    b, n, samples, sizes = 2, 64, 50, []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    x = torch.randn(b, n, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        perturbed_topk(x, 30, samples=samples)
    assert sum(sizes) <= 5 * samples * b * n + 100 * b * n


def test_it_has_no_second_derivative() -> None:
    def loss(x: Tensor) -> Tensor:
        return perturbed_topk(x, 2).square().sum()

    x = torch.randn(4, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(TokenOpsError, match="first derivatives only"):
        torch.autograd.grad(grad.square().sum(), x)
    with pytest.raises(TokenOpsError, match="first derivatives only"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x.detach())


def test_gradients_under_vmap() -> None:
    def loss(x: Tensor) -> Tensor:
        return (perturbed_topk(x, 1, samples=20_000, sigma=0.5) * torch.tensor([1.0, 0.0, -1.0])).sum()

    x = torch.tensor([[0.3, 0.0, 0.1]]).repeat(2, 1)
    grads = torch.vmap(torch.func.grad(loss), randomness="different")(x)
    point = x[0].double().requires_grad_()
    p = inclusion(point, 1, noise="gaussian", scale=0.5)
    (exact,) = torch.autograd.grad(p[0] - p[2], point)
    assert_close(grads, exact.expand(2, 3), 0.05)
    assert not torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("sigma", [0.0, math.nan, -1.0])
def test_rows_without_a_scale_are_nan(sigma: float) -> None:
    x, mask = torch.randn(2, 4), torch.tensor([[True, True, True, False]] * 2)
    y = perturbed_topk(x, 2, sigma=torch.tensor([1.0, sigma]), mask=mask)
    assert_close(y[0].sum(), torch.tensor(2.0), 1e-5)
    assert y[1, :3].isnan().all()
    assert not y[:, 3].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"samples": 1},
        {"samples": 2.5},
        {"samples": True},
        {"sigma": 0.0},
        {"sigma": -1},
        {"sigma": "1"},
        {"sigma": math.inf},
        {"sigma": torch.ones(3)},
        {"noise": "logistic"},
        {"noise": None},
        {"ratio": 0.5},
        {"k": None, "ratio": 1.5},
        {"out_dtype": torch.long},
    ],
)
def test_it_refuses(arguments: dict[str, Any]) -> None:
    generator = seeded(0)
    with pytest.raises(TokenOpsError, match="perturbed_topk"):
        perturbed_topk(torch.randn(2, 4), **({"k": 1, "generator": generator} | arguments))
    assert torch.equal(generator.get_state(), seeded(0).get_state())
