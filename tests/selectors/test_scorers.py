"""Scorers without parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenops import TokenOpsError
from tokenops.selectors import Random
from tokenops.selectors.scorers import RandomScore, cls_attention, feature_norm
from tokenops.selectors.scorers.random import mix


def test_random_scores_depend_on_seed_and_place_only() -> None:
    scorer = RandomScore(7)
    whole = scorer(torch.randn(3, 50, 4))
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(scorer(torch.zeros(1, 20, 9).bfloat16())[0], whole[0, :20])
    mask = torch.rand(3, 50) < 0.6
    padded = scorer(torch.randn(3, 50, 4), mask=mask)
    for row, valid in zip(padded, mask, strict=True):
        assert torch.equal(row[valid], whole[0, : int(valid.sum())])
    assert not torch.equal(RandomScore(8)(torch.zeros(1, 50, 1)), whole[:1])


def test_random_scores_are_uniform_and_unrelated() -> None:
    scores = torch.cat([RandomScore(seed)(torch.zeros(1, 4096, 1)) for seed in range(-8, 8)])
    assert scores.min() >= 0
    assert scores.max() < 1
    expected = 4096 / 64
    for row in scores:
        histogram = torch.histc(row, 64, 0, 1)
        assert float(((histogram - expected) ** 2 / expected).sum()) < 120
    correlation = torch.corrcoef(torch.cat([scores, scores[:1].roll(1, 1)]))
    assert float(correlation.fill_diagonal_(0).abs().max()) < 0.07
    assert mix(2**32 + 5) == mix(5)


def test_every_token_is_kept_equally_often() -> None:
    x = torch.zeros(1, 144, 1)
    often = torch.stack([Random(0.2, seed=seed)(x).mask[0] for seed in range(300)]).float().mean(0)
    deviation = (28 / 144 * (1 - 28 / 144) / 300) ** 0.5
    assert float((often - 28 / 144).abs().max()) < 4.5 * deviation


def test_fresh_scores_follow_the_global_generator() -> None:
    scorer, x = RandomScore(seed=None), torch.zeros(2, 5, 1)
    torch.manual_seed(1)
    first, second = scorer(x), scorer(x)
    torch.manual_seed(1)
    assert torch.equal(scorer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [1.5, True, "0"])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(TokenOpsError, match="RandomScore"):
        RandomScore(seed)


def test_feature_norm_is_exact_in_half_precision() -> None:
    x = torch.randn(2, 30, 512).bfloat16()
    torch.testing.assert_close(feature_norm(x), x.double().norm(dim=-1).float())
    large = torch.full((1, 1, 4), 60000.0, dtype=torch.float16)
    assert feature_norm(large).item() == pytest.approx(120000, rel=1e-3)


def test_cls_attention_checks_its_signal() -> None:
    x = torch.zeros(2, 3, 4)
    scores = cls_attention(x, cls_attention=torch.rand(2, 3).half())
    assert scores.dtype == torch.float32
    for bad in (torch.rand(2, 4), torch.rand(2, 3, 1), torch.ones(2, 3).long(), torch.rand(2, 3).to("meta")):
        with pytest.raises(TokenOpsError, match="cls_attention"):
            cls_attention(x, cls_attention=bad)
