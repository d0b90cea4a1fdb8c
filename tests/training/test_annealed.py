"""A temperature that follows the progress of training."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from integrations import tiny
from training import kit

from tokenops import TokenOpsError
from tokenops.integrations.describe import describe
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import hard_topk, laplace_topk, soft_topk
from tokenops.training import Annealed, Trainable, exponential, linear


def test_it_is_the_relaxation_at_the_temperature_of_now() -> None:
    x, mask = torch.randn(2, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    relax = Annealed(laplace_topk, exponential(4.0, 0.25))
    for progress, tau in ((0.0, 4.0), (0.5, 1.0), (1.0, 0.25)):
        relax.progress = progress
        assert torch.equal(relax(x, 3, mask=mask), laplace_topk(x, 3, mask=mask, temperature=tau))


def test_training_sets_the_progress_and_the_gap_narrows() -> None:
    relax = Annealed(functools.partial(soft_topk), linear(1.0, 1e-3))
    t = Trainable(tiny.llava(), visionselector(kit.scorer(), 0.25, relax=relax)).train()
    batch = tiny.batch([kit.row("llava", [0], 3, 6)])
    gaps = []
    for progress in (0.0, 0.5, 1.0):
        t.progress = progress
        t(**batch)["loss"].backward()
        assert relax.progress == progress
        gaps.append(float(t.metrics["soft_hard_gap"]))
    assert gaps[0] > gaps[1] > gaps[2]
    assert not list(relax.state_dict())


def test_saving_asks_for_the_plain_relaxation() -> None:
    with pytest.raises(TokenOpsError, match="Annealed"):
        describe(visionselector(kit.scorer(), 0.25, relax=Annealed(soft_topk, linear(1.0, 0.1))))


def test_repr() -> None:
    assert repr(Annealed(soft_topk, exponential(2.0, 1.0))).startswith("Annealed(soft_topk, ")


@pytest.mark.parametrize(
    ("relax", "temperature"), [(hard_topk, linear(1, 2)), (3, linear(1, 2)), (soft_topk, 1.0)]
)
def test_bad_input(relax: Any, temperature: Any) -> None:
    with pytest.raises(TokenOpsError, match="Annealed"):
        Annealed(relax, temperature)
