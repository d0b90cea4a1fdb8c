"""Scores where no text or no visual row can look: the other factor still ranks. And scores near zero."""

from __future__ import annotations

import pytest
import torch
from routers.kit import drawn
from torch import Tensor

from tokenops.routers import attention_scores
from tokenops.routers.low_rank import reference
from tokenops.testing.drawing import Draw, assert_close, hold


@pytest.mark.parametrize("causal", [True, False])
def test_without_text_the_visual_factor_ranks(causal: bool) -> None:
    q, k = torch.randn(1, 1, 5, 3), torch.randn(1, 1, 5, 3)
    everything = torch.ones(1, 5, dtype=torch.bool)
    scores = attention_scores(q, k, visual=everything, causal=causal)
    # the received attention sums to 1, and the text factor is 1/5
    assert float(scores.sum()) == pytest.approx(1 / 5)
    assert len(scores.unique()) == 5


def test_text_that_cannot_look_back_leaves_the_ranking_to_the_visual_rows() -> None:
    q, k = torch.randn(1, 1, 6, 3), torch.randn(1, 1, 6, 3)
    visual = torch.tensor([[False, False, True, True, True, True]])
    scores = attention_scores(q, k, visual=visual)[0, 2:]
    attention = reference_map(q, k)
    assert_close(scores, attention[2:, 2:].mean(0) / 6, 1e-7)
    # text on both sides: the second image is seen by no text row, the first one is
    visual = torch.tensor([[True, True, False, True, True, True]])
    scores = attention_scores(q, k, visual=visual)[0]
    seen = attention[visual[0]].mean(0)
    assert_close(scores[:2], seen[:2] * attention[2, :2], 1e-7)
    assert_close(scores[3:], seen[3:] / 6, 1e-7)


def reference_map(q: Tensor, k: Tensor) -> Tensor:
    """Causal map of one head (l l)."""
    logits = q[0, 0] @ k[0, 0].T / q.shape[3] ** 0.5
    return logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -float("inf")).softmax(-1)


def test_no_visual_tokens_no_scores_and_empty_batches() -> None:
    q = torch.randn(2, 1, 3, 4)
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert not attention_scores(q, q, visual=none).any()
    assert attention_scores(q, q, visual=none, log=True).eq(-float("inf")).all()
    assert not attention_scores(q, q, visual=~none, mask=none).any()
    assert attention_scores(q[:0], q[:0], visual=none[:0]).shape == (0, 3)
    assert attention_scores(q[:, :, :0], q[:, :, :0], visual=none[:, :0]).shape == (2, 0)


def test_one_query_row_is_one_row_of_attention() -> None:
    """The last token's attention, FastV's signal: no visual row is asked, so that factor is uniform."""
    q, k = torch.randn(1, 1, 7, 4), torch.randn(1, 1, 7, 4)
    visual = torch.arange(7)[None] < 5
    scores = attention_scores(q, k, visual=visual, queries=torch.arange(7)[None] == 6)
    assert_close(scores[0, :5], reference_map(q, k)[6, :5] / 7, 1e-7)


def test_logarithms_rank_what_products_cannot() -> None:
    """The product of two small float32 factors is 0; their logarithms' sum has the order."""
    q, k = torch.ones(1, 1, 40, 1), torch.zeros(1, 1, 40, 1)
    k[0, 0, :39, 0] = -torch.linspace(60, 70, 39)
    visual = torch.arange(40)[None] < 39
    options = {"visual": visual, "causal": False, "scale": 1.0}
    exact = reference.attention_scores(q.double(), k.double(), **options)[0, :39]
    assert len(attention_scores(q, k, **options)[0, :39].unique()) < 39
    logs = attention_scores(q, k, **options, log=True)[0]
    assert_close(logs[:39], exact.log(), 1e-4)
    assert logs[:39].argsort().tolist() == exact.argsort().tolist()
    assert logs[39] == -float("inf")


def test_logarithm_of_the_score() -> None:
    def law(draw: Draw) -> None:
        q, k, options = drawn(draw)
        scores = attention_scores(q, k, **options)
        assert_close(attention_scores(q, k, **options, log=True), scores.log(), 1e-9)

    hold(law)
