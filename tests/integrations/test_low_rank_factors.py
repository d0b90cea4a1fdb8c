"""Factors of a model's own attention: the right weights, heads and biases, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations.reference import FAMILIES, model
from torch import nn

import tokenops
from tokenops import TokenOpsError, recipes
from tokenops.integrations import low_rank_factors


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_factors_are_the_projections(family: str) -> None:
    m = model(family)
    factors = low_rank_factors(m, 48, softmax="head")
    assert list(factors) == ["0", "1", "2"]
    attention = m.model.language_model.layers[1].self_attn
    x = torch.randn(2, 5, 48)
    q, k = factors["1"].queries_and_keys(x)
    for got, projection in ((q, attention.q_proj), (k, attention.k_proj)):
        wanted = projection(x).view(2, 5, -1, 12).transpose(1, 2)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    assert factors["1"].scale == attention.scaling


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_factors_give_the_mean_of_the_heads_logits(family: str) -> None:
    m = model(family)
    made = low_rank_factors(m, 48, svd="logits")["0"]
    attention = m.model.language_model.layers[0].self_attn
    x = torch.randn(1, 6, 48)
    q = attention.q_proj(x).view(1, 6, 4, 12).transpose(1, 2)
    k = attention.k_proj(x).view(1, 6, 2, 12).transpose(1, 2).repeat_interleave(2, dim=1)
    if attention.k_proj.bias is not None:  # the same for all keys: it drops out of the softmax
        k = k - attention.k_proj.bias.view(1, 2, 1, 12).repeat_interleave(2, dim=1)
    wanted = (q @ k.transpose(-1, -2)).mean(1) * attention.scaling
    ours_q, ours_k = made.queries_and_keys(x)
    got = (ours_q @ ours_k.transpose(-1, -2))[:, 0] * made.scale
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_some_layers_only() -> None:
    factors = low_rank_factors(model("llava"), 4, layers=[2])
    assert list(factors) == ["2"]
    assert all(p.requires_grad for p in factors.parameters())
    with pytest.raises(TokenOpsError, match="a scorer for layer 0"):
        tokenops.attach(model("llava"), recipes.alvts(factors, 0.5))


def test_half_precision_models_give_float32_factors() -> None:
    factors = low_rank_factors(model("qwen2_5_vl", dtype=torch.bfloat16), 4)
    assert {p.dtype for p in factors.parameters()} == {torch.float32}


def _normed(m: Any) -> None:
    m.model.language_model.layers[0].self_attn.q_norm = nn.Identity()


def _adapted(m: Any) -> None:
    class Adapted(nn.Linear):
        pass

    m.model.language_model.layers[0].self_attn.q_proj = Adapted(48, 48)


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (lambda m: None, {"rank": 0}, "rank"),
        (lambda m: None, {"rank": 49}, "rank"),
        (lambda m: None, {"rank": 4, "layers": [3]}, r"layers in \[0, 3\)"),
        (lambda m: None, {"rank": 4, "layers": []}, "layers"),
        (lambda m: None, {"rank": 4, "softmax": "both"}, "softmax"),
        (_normed, {"rank": 4}, "without q_norm"),
        (_adapted, {"rank": 4}, "plain linear"),
    ],
)
def test_refusals(change: Any, arguments: dict[str, Any], told: str) -> None:
    m = model("llava")
    change(m)
    with pytest.raises(TokenOpsError, match=told):
        low_rank_factors(m, **arguments)
