"""A scorer learns through every relaxation: marked tokens are found, soft and hard mask meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops.selectors.relaxations import (
    capped_simplex_topk,
    entmax_topk,
    gaussian_topk,
    hard_topk,
    laplace_topk,
    sigmoid_topk,
)
from tokenops.selectors.relaxations.gumbel import gumbel_topk
from tokenops.selectors.relaxations.logistic import logistic_topk
from tokenops.selectors.relaxations.perturbed import perturbed_topk
from tokenops.selectors.relaxations.systematic import systematic_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.selectors.topk import code_of
from tokenops.training import soft_hard_gap

N, K, WIDTH, STEPS = 24, 4, 8, 80
SMOOTH = (sigmoid_topk, laplace_topk, gaussian_topk, capped_simplex_topk, entmax_topk)
DRAWN = (
    partial(gumbel_topk, noise_scale=0.3),
    partial(gumbel_topk, noise_scale=0.3, hard=True),
    logistic_topk,
    systematic_topk,
    partial(perturbed_topk, samples=20, sigma=0.5),
)


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (b n d) and the K marked ones (b n): those whose first feature is high."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, N, WIDTH, generator=g)
    marked = hard_topk(torch.rand(count, N, generator=g), K)
    x[..., 0] = 1.5 * marked + 0.3 * x[..., 0]
    return x, marked


def learn(relax: Callable[..., Tensor]) -> tuple[list[float], list[float]]:
    """Share of marked tokens that the hard choice finds, and the soft-hard gap, before and after."""
    torch.manual_seed(0)
    scorer = LearnedScorer(WIDTH, hidden=8)
    torch.nn.init.normal_(scorer.k_proj.bias, std=0.5)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.03)
    x, marked = scenes(32, 1)
    fresh, wanted = scenes(64, 2)
    found, gaps = [], []
    for step in range(STEPS + 1):
        if step in (0, STEPS):
            with torch.no_grad():
                scores = scorer(fresh)
                hard = hard_topk(scores, K)
                soft = relax(scores, K)
                found.append(float((hard & wanted).sum() / wanted.sum()))
                gaps.append(float(soft_hard_gap(soft, hard, torch.ones_like(hard))))
        # what is kept of the marked tokens is all the task tells
        loss = -(relax(scorer(x), K) * marked).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found, gaps


@pytest.mark.parametrize("relax", SMOOTH, ids=lambda f: f.__name__)
def test_every_member_learns_and_closes_the_gap(relax: Any) -> None:
    found, gaps = learn(relax)
    assert found[0] < 0.6
    assert found[1] > 0.9
    assert gaps[1] < 0.3 * gaps[0]


@pytest.mark.parametrize("relax", DRAWN, ids=code_of)
def test_every_sampler_learns(relax: Any) -> None:
    found, gaps = learn(relax)
    assert found[0] < 0.6
    assert found[1] > 0.9
    assert gaps[1] < 0.5 * gaps[0]
