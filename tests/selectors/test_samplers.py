"""The stochastic members: their contract, known distributions, straight-through gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops.registry import registered
from tokenops.selectors.relaxations import hard_topk, soft_topk
from tokenops.selectors.relaxations.gumbel import gumbel_topk
from tokenops.selectors.relaxations.logistic import logistic_topk
from tokenops.selectors.relaxations.perturbed import perturbed_topk
from tokenops.selectors.relaxations.systematic import systematic_topk
from tokenops.testing import samplers
from tokenops.testing.drawing import Law, assert_close, hold
from tokenops.testing.inclusion import follows, inclusion, plackett_luce
from tokenops.testing.samplers import seeded


def soft(scores: Tensor, k: int) -> Tensor:
    return soft_topk(scores, k)


MEANS = {
    "gumbel_topk": (partial(gumbel_topk, hard=True), plackett_luce),
    "gumbel_topk, wide": (
        partial(gumbel_topk, hard=True, noise_scale=2.0),
        lambda x, k: plackett_luce(x / 2, k),
    ),
    "logistic_topk": (logistic_topk, partial(inclusion, noise="logistic")),
    "logistic_topk, cold": (
        partial(logistic_topk, temperature=0.5),
        partial(inclusion, noise="logistic", scale=0.5),
    ),
    "perturbed_topk": (
        partial(perturbed_topk, samples=2, sigma=0.5),
        partial(inclusion, noise="gaussian", scale=0.5),
    ),
    "perturbed_topk, gumbel": (partial(perturbed_topk, samples=2, noise="gumbel"), plackett_luce),
    "systematic_topk": (systematic_topk, soft),
    "systematic_topk, sparse": (
        partial(systematic_topk, method="capped_simplex"),
        partial(soft_topk, method="capped_simplex"),
    ),
}
HARD = {
    "gumbel_topk": partial(gumbel_topk, hard=True),
    "logistic": logistic_topk,
    "systematic": systematic_topk,
}


def test_quadrature_agrees_with_the_closed_form() -> None:
    x = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    for k in (1, 2):
        assert_close(inclusion(x, k, noise="gumbel"), plackett_luce(x, k), 1e-9)


def test_every_sampler_has_a_known_mean() -> None:
    assert {entry.name for entry in registered("sampler")} == {name.partition(",")[0] for name in MEANS}


@pytest.mark.parametrize("name", MEANS)
def test_mean(name: str) -> None:
    sampler, mean = MEANS[name]
    follows(sampler, mean)


@pytest.mark.parametrize("law", samplers.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("entry", registered("sampler"), ids=lambda e: e.name)
def test_law(entry: Any, law: Law) -> None:
    hold(law, entry.make())


@pytest.mark.parametrize("entry", registered("sampler"), ids=lambda e: e.name)
def test_compiles(entry: Any) -> None:
    samplers.compiles(entry.make())


@pytest.mark.parametrize("sampler", HARD.values(), ids=HARD)
def test_hard_draws(sampler: Any) -> None:
    hold(samplers.ones_and_zeros, sampler)
    hold(samplers.padding_inert, sampler)


@pytest.mark.parametrize("sampler", HARD.values(), ids=HARD)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_exactly_k_of_many(sampler: Any, scale: float) -> None:
    x = torch.randn(100, 2048) * scale
    k = torch.randint(1, 2048, (100,))
    assert torch.equal(sampler(x, k, generator=seeded(0)).sum(-1), k.float())


@pytest.mark.parametrize("sampler", [systematic_topk, logistic_topk])
@pytest.mark.parametrize("budget", [{"k": 2}, {"k": 1.75}, {"ratio": 0.3}])
def test_gradient_is_that_of_the_soft_mask(sampler: Any, budget: Any) -> None:
    x, g = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    tau = torch.tensor([0.5, 1.0, 2.0, 4.0], requires_grad=True)
    hard, relaxed = sampler(x, **budget, temperature=tau), soft_topk(x, **budget, temperature=tau)
    for one, other in zip(
        *(torch.autograd.grad((m * g).sum(), (x, tau)) for m in (hard, relaxed)), strict=True
    ):
        assert torch.equal(one, other)


def test_gumbel_hard_and_soft_are_one_draw() -> None:
    x, g = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    hard, relaxed = (gumbel_topk(x, 3, hard=h, generator=seeded(1)) for h in (True, False))
    assert torch.equal(hard.detach(), hard_topk(relaxed, 3).float())
    grads = [torch.autograd.grad((m * g).sum(), x)[0] for m in (hard, relaxed)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("k", [1.5, 2.75, torch.tensor(0.25)])
def test_systematic_meets_a_real_budget_on_average(k: Any) -> None:
    x, rows = torch.tensor([1.0, -0.5, 0.25, 2.0]), 200_000
    p = soft_topk(x, k)
    m = systematic_topk(x.expand(rows, 4), k, generator=seeded(0))
    assert ((m.mean(0) - p).abs() <= 5 * (p * (1 - p) / rows).sqrt()).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_logistic_is_close_to_the_soft_mask(temperature: float) -> None:
    x = torch.randn(20, 3, dtype=torch.float64) / temperature
    for k in (1, 2):
        p = soft_topk(x, k)
        off = torch.stack([inclusion(row, k, noise="logistic") for row in x]) - p
        bound = (0.023 / (p * (1 - p)).sum(-1) ** 2).clamp(max=0.071)
        assert (off.abs().amax(-1) <= bound).all()


def test_among_many_logistic_meets_the_soft_mask_and_gumbel_does_not() -> None:
    x, rows = 2 * torch.randn(64, generator=seeded(5)), 50_000
    p = soft_topk(x, 16)
    bound = 0.023 / (p * (1 - p)).sum() ** 2
    assert bound < 1e-3
    noise = 5 * (p * (1 - p) / rows).sqrt()
    near, far = (
        (sampler(x.expand(rows, 64), 16, generator=seeded(0)).mean(0) - p).abs()
        for sampler in (logistic_topk, HARD["gumbel_topk"])
    )
    assert (near <= noise + bound).all()
    assert far.max() > 0.1


@pytest.mark.parametrize("sampler", HARD.values(), ids=HARD)
def test_segments_have_draws_and_budgets_of_their_own(sampler: Any) -> None:
    segments = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 1, 2]).expand(64, -1)
    m = sampler(torch.zeros(64, 10), torch.tensor([2, 2, 1]), segments=segments, generator=seeded(0))
    assert torch.equal(m[:, :4].sum(-1), torch.full((64,), 2.0))
    assert torch.equal(m[:, 5:9].sum(-1), torch.full((64,), 2.0))
    assert not m[:, 4].any()
    assert m[:, 9].all()
    assert (m[:, :4] != m[:, 5:9]).any()
