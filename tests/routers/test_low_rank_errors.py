"""Low-rank factors: errors bounded by singular values, and exact attention at full rank."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from einops import rearrange
from routers.kit import EXACT, F64, Layer, low_rank_logits, tail

from tokenops.routers.low_rank import reference
from tokenops.routers.low_rank.factors import split, split_product
from tokenops.testing.drawing import Draw, assert_close, hold


def test_split_is_the_nearest_matrix_with_even_factors() -> None:
    def law(draw: Draw) -> None:
        weight = draw.normal(draw.integer(1, 8), draw.integer(1, 8), dtype=F64)
        errors = []
        for rank in range(1, 10):
            up, down = split(weight, rank)
            assert up.shape == (weight.shape[0], rank)
            assert down.shape == (rank, weight.shape[1])
            error = weight - up @ down
            assert float(torch.linalg.matrix_norm(error, 2)) == pytest.approx(tail(weight, rank), abs=1e-9)
            values = torch.linalg.svdvals(weight)[rank:]
            assert float(error.square().sum()) == pytest.approx(float(values.square().sum()), abs=1e-9)
            assert_close(up.T @ up, down @ down.T, 1e-9)
            errors.append(float(error.norm()))
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(errors))

    hold(law)


def test_split_of_a_product_never_forms_it() -> None:
    def law(draw: Draw) -> None:
        s = draw.integer(1, 5)
        left, right = (draw.normal(s, draw.integer(1, 8), dtype=F64) for _ in range(2))
        rank = draw.integer(1, 9)
        for got, plain in zip(split_product(left, right, rank), split(left.T @ right, rank), strict=True):
            assert got.shape == plain.shape
        up, down = split_product(left, right, rank)
        plain_up, plain_down = split(left.T @ right, rank)
        assert_close(up @ down, plain_up @ plain_down, 1e-9)
        assert_close(up.T @ up, down @ down.T, 1e-9)

    hold(law)


def test_joint_logits_are_those_of_the_truncated_weights() -> None:
    """W_Q and W_K truncated, biases exact, key heads repeated, heads summed: folding changes nothing."""

    def law(draw: Draw) -> None:
        layer, bias = Layer(draw), draw.choice(True, False)
        rank = draw.integer(1, layer.d)
        truncated = copy.copy(layer)
        truncated.w_q, truncated.w_k = (reference.low_rank(w, rank) for w in (layer.w_q, layer.w_k))
        x = draw.normal(2, 5, layer.d, dtype=F64)
        got = low_rank_logits(layer.low_rank(rank, bias=bias), x)
        torch.testing.assert_close(got, truncated.logits(x, bias=bias), **EXACT)

    hold(law)


def test_logits_err_by_tail_singular_values_at_most() -> None:
    """Off by s_Q ||W_K|| + ||W_Q|| s_K at most in the spectral norm, s the first singular values left out."""

    def law(draw: Draw) -> None:
        layer = Layer(draw)
        rank = draw.integer(1, layer.d)
        repeated = layer.w_k.view(layer.g, layer.e, -1).repeat_interleave(layer.h // layer.g, 0).flatten(0, 1)
        product = layer.w_q.T @ repeated
        bound = tail(layer.w_q, rank) * tail(repeated, 0) + tail(layer.w_q, 0) * tail(repeated, rank)
        for svd, limit in (("factors", bound), ("logits", tail(product, rank))):
            made = layer.low_rank(rank, bias=False, svd=svd)
            error = product - made.q.weight.detach().T @ made.k.weight.detach()
            assert float(torch.linalg.matrix_norm(error, 2)) <= limit + 1e-9
            if svd == "logits":
                assert float(torch.linalg.matrix_norm(error, 2)) >= limit - 1e-9

    hold(law)


def test_svd_of_the_logits_is_never_worse_and_monotone() -> None:
    def law(draw: Draw) -> None:
        layer, bias = Layer(draw), draw.choice(True, False)
        group = layer.h // layer.g
        repeated = layer.w_k.view(layer.g, layer.e, -1).repeat_interleave(group, 0).flatten(0, 1)
        w_q = torch.cat([layer.w_q, layer.b_q[:, None]], 1) if bias else layer.w_q
        product = w_q.T @ repeated
        errors: dict[str, list[float]] = {"factors": [], "logits": []}
        for svd, found in errors.items():
            for rank in range(1, layer.d + 1):
                made = layer.low_rank(rank, bias=bias, svd=svd)
                q = torch.cat([made.q.weight, made.q.bias[:, None]], 1) if bias else made.q.weight
                found.append(float((product - q.T @ made.k.weight).detach().norm()))
        logits = errors["logits"]
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(logits))
        assert all(a >= b - 1e-9 for a, b in zip(errors["factors"], logits, strict=True))
        assert max(errors["factors"][-1], logits[-1]) < 1e-9

    hold(law)


@pytest.mark.parametrize("svd", ["factors", "logits"])
def test_full_rank_joint_logits_are_exact(svd: str) -> None:
    def law(draw: Draw) -> None:
        layer, bias = Layer(draw), draw.choice(True, False)
        x = draw.normal(2, 4, layer.d, dtype=F64)
        got = low_rank_logits(layer.low_rank(layer.d, bias=bias, svd=svd), x)
        torch.testing.assert_close(got, layer.logits(x, bias=bias), **EXACT)

    hold(law)


def test_joint_scores_are_one_softmax_over_the_summed_logits() -> None:
    layer = Layer()
    x, visual = torch.randn(2, 9, layer.d, dtype=F64), torch.rand(2, 9) < 0.6
    scores = layer.low_rank(layer.d)(x, visual=visual)
    logits = layer.logits(x)
    one = reference.attention_scores(
        logits[:, None], torch.eye(9, dtype=F64).expand(2, 1, 9, 9), visual=visual, scale=layer.e**-0.5
    )
    torch.testing.assert_close(scores.detach(), one, **EXACT)


def test_full_rank_heads_rotated_and_causal_are_the_layers_own_attention() -> None:
    def law(draw: Draw) -> None:
        layer, bias = Layer(draw), draw.choice(True, False)
        b, l = draw.integer(1, 3), draw.integer(1, 8)  # noqa: E741
        x = draw.normal(b, l, layer.d, dtype=F64)
        angle = draw.normal(draw.choice(1, b), l, layer.e // 2, dtype=F64).repeat(1, 1, 2)
        cos, sin = angle.cos(), angle.sin()
        q, k = (reference.rotate(t, cos, sin) for t in layer.queries_and_keys(x, bias=bias))
        options = {"visual": draw.mask(b, l), "mask": draw.mask(b, l), "causal": draw.choice(True, False)}
        rank = min(layer.d, max(layer.w_q.shape[0], layer.w_k.shape[0]))
        made = layer.low_rank(rank, bias=bias, softmax="head")
        got = made(x, **options, rope=(cos, sin), chunk=draw.choice(None, 2)).detach()
        torch.testing.assert_close(got, reference.attention_scores(q, k, **options), **EXACT)

    hold(law)


def test_heads_err_by_tail_singular_values_and_less_with_rank() -> None:
    def law(draw: Draw) -> None:
        layer = Layer(draw)
        x = torch.eye(layer.d, dtype=F64)[None]
        for which, weight in enumerate((layer.w_q, layer.w_k)):
            errors = []
            for rank in range(1, layer.d + 1):
                got = layer.low_rank(rank, softmax="head").queries_and_keys(x)[which]
                exact = layer.queries_and_keys(x)[which]
                error = rearrange((got - exact).detach(), "1 h d e -> (h e) d")
                assert float(torch.linalg.matrix_norm(error, 2)) <= tail(weight, rank) + 1e-9
                errors.append(float(error.norm()))
            assert all(a >= b - 1e-9 for a, b in itertools.pairwise(errors))

    hold(law)


@pytest.mark.parametrize("softmax", ["joint", "head"])
def test_few_key_heads_equal_repeated_ones(softmax: str) -> None:
    layer = Layer()
    group = layer.h // layer.g
    many = copy.copy(layer)
    many.g = layer.h
    for name in ("w_k", "b_k"):
        weight = getattr(layer, name).unflatten(0, (layer.g, layer.e))
        setattr(many, name, weight.repeat_interleave(group, 0).flatten(0, 1))
    x, visual = torch.randn(2, 7, layer.d, dtype=F64), torch.rand(2, 7) < 0.6
    for rank in (1, 3, layer.d):
        scores = [made.low_rank(rank, softmax=softmax)(x, visual=visual) for made in (layer, many)]
        torch.testing.assert_close(*scores, **EXACT)
