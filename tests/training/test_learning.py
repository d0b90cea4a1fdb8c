"""A scorer learns: which patches the answers depend on, and to be decided about it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from integrations import tiny
from training import kit

import tokenops
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import soft_topk, systematic_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training import Trainable, constant, linear

KEEP, STEPS = 0.25, 60


def questions(teacher: Any, count: int) -> dict[str, torch.Tensor]:
    """One image each; the labels are what the model says when it sees the teacher's patches only."""
    model = tiny.llava().eval()
    batch = tiny.batch([kit.row("llava", [0], 100 + i, 6) for i in range(count)])
    with tokenops.attach(model, visionselector(teacher, keep=KEEP).eval()), torch.no_grad():
        said = model(**batch, use_cache=False).logits.argmax(-1)
    labelled = batch["labels"][:, 1:] != -100
    batch["labels"][:, 1:] = torch.where(labelled, said[:, :-1], -100)
    return batch


def hard_loss(t: Trainable, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        loss = t.eval()(**batch)["loss"].item()
    t.train()
    return loss


def learn(
    relax: Any, gate: str, curriculum: Any, steps: int = STEPS
) -> tuple[dict[str, float], dict[str, float]]:
    """Values before and after: soft task loss, gap, and hard loss on the same questions."""
    batch = questions(kit.scorer(7, std=0.3), 12)
    torch.manual_seed(0)
    scorer = LearnedScorer(kit.WIDTH)
    torch.nn.init.normal_(scorer.k_proj.bias, std=0.1)
    t = Trainable(
        tiny.llava(), visionselector(scorer, KEEP, relax=relax, gate=gate), curriculum=curriculum
    ).train()
    optimizer = torch.optim.AdamW(t.parameters(), lr=1e-2)
    found = []
    for step in range(steps + 1):
        t.progress = step / steps
        loss = t(**batch)["loss"]
        if step in (0, steps):
            found.append({k: float(v) for k, v in t.metrics.items()} | {"hard": hard_loss(t, batch)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found[0], found[1]


@pytest.mark.parametrize("gate", ["attention", "multiply"])
def test_it_learns_and_closes_the_gap(gate: str) -> None:
    first, last = learn(soft_topk, gate, linear(0.0, 1.0, begin=0.3))
    # multiplying is the weaker teacher: a pre-norm model reads a scaled feature like an unscaled one
    assert last["task_loss"] < {"attention": 0.8, "multiply": 0.9}[gate] * first["task_loss"]
    assert last["soft_hard_gap"] < 0.5 * first["soft_hard_gap"]
    assert last["soft_hard_bce"] < 0.5 * first["soft_hard_bce"]
    assert last["hard"] < first["hard"]


def test_the_auxiliary_loss_alone_polarises() -> None:
    first, last = learn(soft_topk, "attention", constant(50.0), steps=30)
    assert last["soft_hard_gap"] < 0.2 * first["soft_hard_gap"]


def test_without_it_the_gap_stays_wider() -> None:
    open_, closed = (learn(soft_topk, "attention", constant(w), steps=40)[1] for w in (0.0, 2.0))
    assert closed["soft_hard_gap"] < open_["soft_hard_gap"]


def test_straight_through() -> None:
    """Forward as hard as in evaluation: no gap, a loss that falls, the gradient of the soft mask."""
    first, last = learn(functools.partial(soft_topk, hard=True), "multiply", constant(0.0))
    assert first["soft_hard_gap"] == last["soft_hard_gap"] == 0
    assert last["task_loss"] < first["task_loss"]


def test_straight_through_in_the_attention_gate_is_the_hard_selection() -> None:
    """Where no label is predicted by a dropped patch itself."""
    t = Trainable(tiny.llava(), kit.pipeline(relax=functools.partial(soft_topk, hard=True))).train()
    batch = tiny.batch(
        [kit.row("llava", images, seed, 2) for seed, images in enumerate(([0, 1], [3], [], [2, 0]))]
    )
    out = t(**batch)
    out["loss"].backward()
    assert t.metrics["soft_hard_bce"] == 0
    assert t.metrics["task_loss"].item() == pytest.approx(hard_loss(t, batch), rel=1e-5)
    assert any(g.any() for g in kit.gradients(t).values())


@pytest.mark.parametrize("gate", ["attention", "multiply"])
def test_sampled_hard_masks(gate: str) -> None:
    """Masks drawn hard teach through both gates, and the auxiliary loss leaves them alone."""
    for curriculum in (constant(0.0), constant(2.0)):
        first, last = learn(systematic_topk, gate, curriculum, steps=150)
        assert first["soft_hard_bce"] == last["soft_hard_bce"] == 0
        assert first["soft_hard_gap"] > 0
        assert last["hard"] < {"attention": 0.9, "multiply": 1.0}[gate] * first["hard"]
