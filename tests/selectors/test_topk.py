"""TopK: budget, signals, softness, printing."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import Selection, TokenOpsError
from tokenops.selectors import Random, TopK
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer, cls_attention, feature_norm
from tokenops.testing.drawing import Draw, hold


def test_keeps_the_highest_of_each_row() -> None:
    def law(draw: Draw) -> None:
        b, n = draw.integer(1, 3), draw.integer(1, 9)
        x, mask, keep = draw.normal(b, n, 4), draw.mask(b, n), draw.choice(0.5, 1, 3, 1.0)
        chosen = TopK(feature_norm, keep)(x, mask=mask)
        for i in range(b):
            scores = feature_norm(x)[i]
            kept, lost = scores[chosen.mask[i]], scores[mask[i] & ~chosen.mask[i]]
            assert not len(kept) or not len(lost) or kept.min() >= lost.max()
        assert chosen.scores is not None
        assert torch.equal(chosen.scores, feature_norm(x))

    hold(law)


def test_soft_in_training_with_a_relaxation_only() -> None:
    scorer, x = LearnedScorer(8), torch.randn(2, 10, 8)
    hard, soft = TopK(scorer, 0.3), TopK(scorer, 0.3, relax=soft_topk)
    assert hard.train()(x).gate is None
    assert soft.eval()(x).gate is None
    chosen = soft.train()(x)
    assert chosen.gate is not None
    assert torch.equal(chosen.index, hard(x).index)
    assert chosen.gate.sum(1).tolist() == pytest.approx([3, 3])
    chosen.gate[:, 0].sum().backward()
    assert scorer.q_proj.weight.grad is not None
    assert scorer.q_proj.weight.grad.isfinite().all()


def test_the_gate_follows_each_rows_budget() -> None:
    mask = torch.tensor([[True] * 10, [True] * 4 + [False] * 6, [False] * 10])
    chosen = TopK(feature_norm, 0.5, relax=soft_topk).train()(torch.randn(3, 10, 8), mask=mask)
    assert chosen.gate is not None
    assert chosen.counts.tolist() == [5, 2, 0]
    assert chosen.gate.sum(1).tolist() == pytest.approx([5, 2, 0])
    assert not chosen.gate[~mask].any()


def test_keep_is_validated_and_settable() -> None:
    selector = TopK(feature_norm, 0.5)
    selector.keep = 3
    assert selector(torch.randn(1, 8, 2)).k == 3
    for bad in (0, 2.0, True, None):
        with pytest.raises(TokenOpsError, match="TopK"):
            selector.keep = bad  # type: ignore[assignment]
    assert selector.keep == 3


def test_compiles_in_one_graph() -> None:
    selector, x = TopK(feature_norm, 0.5), torch.randn(2, 8, 2)
    compiled = torch.compile(selector, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x).index, selector(x).index)


def test_needs_are_the_scorers() -> None:
    assert TopK(cls_attention, 0.5).needs() == {"cls_attention": True}
    assert TopK(LearnedScorer(8), 0.5).needs() == {"segments": False}
    assert Random(0.5).needs() == {}


def test_signals_are_checked() -> None:
    x = torch.randn(1, 4, 8)
    with pytest.raises(TokenOpsError, match="signals among cls_attention, got text"):
        TopK(cls_attention, 0.5)(x, text=x)
    with pytest.raises(TokenOpsError, match="signals among none"):
        Random(0.5)(x, grid=x)
    with pytest.raises(TokenOpsError, match="signal cls_attention"):
        TopK(cls_attention, 0.5)(x)
    segments = torch.tensor([[0, 0, 1, 1]])
    together, apart = (TopK(LearnedScorer(8), 0.5)(x, segments=s).scores for s in (None, segments))
    assert together is not None
    assert apart is not None
    assert not torch.equal(together, apart)


def wrong_shape(x: Tensor) -> Tensor:
    return x.sum(-1)[:, :-1]


def wrong_dtype(x: Tensor) -> Tensor:
    return x.sum(-1) > 0


@pytest.mark.parametrize("scorer", [wrong_shape, wrong_dtype])
def test_scores_are_checked(scorer: Any) -> None:
    with pytest.raises(TokenOpsError, match=scorer.__name__):
        TopK(scorer, 0.5)(torch.randn(1, 4, 8))


def test_nothing_runs_on_bad_input() -> None:
    def scorer(x: Tensor) -> Tensor:
        pytest.fail("the scorer must not run")

    for x, mask in (
        (torch.zeros(4, 8), None),
        (torch.zeros(1, 4, 8).long(), None),
        (torch.zeros(1, 4, 8), torch.ones(1, 3, dtype=torch.bool)),
        (torch.zeros(1, 4, 8), torch.ones(1, 4)),
        (torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool, device="meta")),
    ):
        with pytest.raises(TokenOpsError, match="TopK"):
            TopK(scorer, 0.5)(x, mask=mask)
    with pytest.raises(TokenOpsError, match="callable scorer"):
        TopK(3, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TokenOpsError, match="callable relax"):
        TopK(feature_norm, 0.5, relax=3)  # type: ignore[arg-type]


def test_nan_scores_lose() -> None:
    x = torch.tensor([[[float("nan")], [1.0], [2.0], [float("nan")]]])
    assert TopK(feature_norm, 2)(x).index.tolist() == [[1, 2]]
    assert TopK(feature_norm, 3)(x).index.tolist() == [[0, 1, 2]]


def test_no_device_read_without_a_mask() -> None:
    """On the meta device any read of a value would raise."""
    chosen = TopK(feature_norm, 0.25)(torch.empty(2, 16, 4, device="meta"))
    assert isinstance(chosen, Selection)
    assert chosen.index.shape == (2, 4)


def test_prints_as_code() -> None:
    sharp = functools.partial(soft_topk, temperature=0.5)
    assert repr(TopK(LearnedScorer(64), 0.2)) == "TopK(LearnedScorer(64, hidden=32), keep=0.2)"
    assert repr(TopK(feature_norm, 64, relax=soft_topk)) == "TopK(feature_norm, keep=64, relax=soft_topk)"
    assert repr(TopK(feature_norm, 64, sharp)).endswith("relax=partial(soft_topk, temperature=0.5))")


def test_copies_run_on_their_own() -> None:
    selector = TopK(LearnedScorer(8), 0.5, relax=soft_topk)
    twin = copy.deepcopy(selector)
    twin.keep = 1
    assert (selector.keep, twin.keep) == (0.5, 1)
    assert twin.scorer is not selector.scorer
