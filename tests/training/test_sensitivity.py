"""Gains per layer: the damage measured by hand, and the hull that makes it usable."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from integrations import tiny
from integrations.reference import FAMILIES, model
from torch import Tensor

import tokenops
from tokenops import TokenOpsError
from tokenops.integrations import attached, low_rank_factors
from tokenops.recipes import alvts
from tokenops.routers import allocate, per_layer
from tokenops.testing.drawing import Draw, hold
from tokenops.training import layer_budgets, layer_gains
from tokenops.training.sensitivity import _falls, _mix

RIGHT = tiny.batch([tiny.sample("llava", [0], i, (3, 3 + i)) for i in range(2)], "right")


def items(family: str) -> list[dict[str, Any]]:
    one = [tiny.sample(family, [i % 2], i) for i in range(3)]
    return [one[0], tiny.batch(one[1:], "left")]


def next_tokens(m: Any, data: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad():
        found = [m(**inputs, use_cache=False).logits[:, -1].double().softmax(-1) for inputs in data]
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_gains_are_what_the_next_token_loses(family: str) -> None:
    m, data = model(family, "sdpa"), items(family)
    recipe = partial(alvts, low_rank_factors(m, 4))
    gains = layer_gains(m, recipe, data, 0.5, shares=(0.5, 1.0, 2.0), bins=4, progress=False)
    depth = m.config.text_config.num_hidden_layers
    told = next_tokens(m, data)
    for layer in range(depth):
        found = []
        for ratio in (0.25, 0.5, 1.0):
            with tokenops.attach(m, recipe(per_layer([ratio if i == layer else 0.5 for i in range(depth)]))):
                now = next_tokens(m, data)
            found.append((ratio, float((now - told).abs().sum(1).mean()) / 2))
        wanted = _falls(found, 4)
        torch.testing.assert_close(gains[layer], wanted, atol=1e-9, rtol=1e-4)
    assert gains.shape == (depth, 4)
    assert attached(m) is None
    assert len(allocate(gains, 0.5).keeps) == depth


def test_a_layer_that_loses_more_gets_more() -> None:
    """Random weights lose next to nothing: one layer's output is made to matter, by a scale."""
    m = model("llava", "sdpa")
    layers = m.model.language_model.layers
    with torch.no_grad():
        layers[0].self_attn.o_proj.weight.mul_(30.0)
        layers[1].self_attn.o_proj.weight.zero_()
    recipe = partial(alvts, low_rank_factors(m, 4))
    gains = layer_gains(m, recipe, items("llava"), 0.3, bins=16, progress=False)
    keeps = allocate(gains, 0.3, floor=0.05).keeps
    first, second = (keep for keep in keeps[:2] if keep is not None)
    assert float(gains[1].sum()) < float(gains[0].sum())
    assert first > second


def test_budgets_have_the_mean_and_beat_one_ratio_for_all() -> None:
    m, data = model("llava", "sdpa"), items("llava") * 2
    with torch.no_grad():
        m.model.language_model.layers[0].self_attn.o_proj.weight.mul_(30.0)
    recipe = partial(alvts, low_rank_factors(m, 4))
    schedule = layer_budgets(m, recipe, data, 0.5, bins=16, progress=False)
    keeps = [keep for keep in schedule.keeps if keep is not None]
    depth = m.config.text_config.num_hidden_layers
    assert sum(keeps) == pytest.approx(0.5 * depth)
    told, found = next_tokens(m, data[1::2]), []
    for way in (keeps, [0.5] * depth):
        with tokenops.attach(m, recipe(per_layer(way))):
            now = next_tokens(m, data[1::2])
        found.append(float((now - told).abs().sum(1).mean()))
    assert found[0] <= found[1]


def test_mixtures_keep_the_sum() -> None:
    def law(draw: Draw) -> None:
        layers, bins = draw.integer(1, 6), draw.integer(4, 40)
        total = draw.integer(layers, layers * bins)
        cuts = sorted(draw.permutation(layers * (bins - 1))[: total - layers].tolist())
        best = [(1 + sum(cut % layers == i for cut in cuts)) / bins for i in range(layers)]
        for s in range(5):
            mixed = _mix(best, total / (layers * bins), s / 4, bins)
            assert sum(round(keep * bins) for keep in mixed) == total
        assert mixed == pytest.approx(best)

    hold(law)


def test_the_hull_is_the_largest_convex_falling_curve_below() -> None:
    def law(draw: Draw) -> None:
        n, bins = draw.integer(2, 8), draw.integer(1, 40)
        at = torch.linspace(1 / n, 1, n).tolist()
        points = list(zip(at, draw.normal(n).exp().tolist(), strict=True))
        gains = _falls(points, bins)
        assert gains.shape == (bins,)
        assert bool((gains >= 0).all())
        assert bool((gains.diff() <= 1e-9).all())
        lowest = min(y for _, y in points)
        for j, (x, y) in enumerate(points):
            left = float(_falls(points, 1000)[round(x * 1000) :].sum()) + lowest
            assert left <= y + 5e-2 * (1 + y), (j, x, y, left)

    hold(law)


def test_hulls_by_hand() -> None:
    assert _falls([(0.5, 1.0), (1.0, 0.0)], 4).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert _falls([(0.25, 4.0), (0.5, 4.0), (0.75, 0.0), (1.0, 1.0)], 4).tolist() == [2.0, 2.0, 2.0, 0.0]
    assert _falls([(0.25, 1.0), (0.5, 2.0), (1.0, 3.0)], 4).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"budget": 3}, "budget as a ratio"),
        ({"budget": 0.0}, "keep"),
        ({"shares": (1.0,)}, "two shares"),
        ({"shares": (1.0, -1.0)}, "shares > 0"),
        ({"bins": 0}, "bins"),
        ({"data": []}, "one item"),
        ({"data": [3]}, "input_ids"),
        (
            {"data": [tiny.batch([tiny.sample("llava", [0], i, (3, 3 + i)) for i in range(2)], "right")]},
            "left",
        ),
    ],
)
def test_bad_arguments(changed: dict[str, Any], told: str) -> None:
    m = model("llava", "sdpa")
    given: dict[str, Any] = {"data": items("llava"), "budget": 0.5, "progress": False} | changed
    with pytest.raises(TokenOpsError, match=told):
        layer_gains(m, partial(alvts, low_rank_factors(m, 4)), **given)
    assert attached(m) is None
