"""Keeps per layer, and ratios calibrated under a global budget."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.budget import keep_count
from tokenops.routers import Steps, allocate, constant, from_layer, mass_curve, per_layer, pyramid
from tokenops.testing.drawing import Draw, assert_close, hold


def test_the_papers_schedules() -> None:
    assert [constant(0.11)(layer) for layer in (0, 31, 1000)] == [0.11] * 3
    assert [from_layer(2, 0.5)(layer) for layer in range(4)] == [None, None, 0.5, 0.5]
    drop = pyramid((8, 16, 24), (0.5, 0.25, 0.125))
    assert [drop(layer) for layer in (0, 7, 8, 15, 16, 23, 24, 31)] == [
        *(None, None, 0.5, 0.5),
        *(0.25, 0.25, 0.125, 0.125),
    ]
    assert [per_layer([None, 64, 0.1])(layer) for layer in range(3)] == [None, 64, 0.1]


def test_steps_hold_until_the_next_start() -> None:
    def law(draw: Draw) -> None:
        starts = sorted({draw.integer(0, 20) for _ in range(draw.integer(1, 5))})
        keeps = [draw.choice(None, 0.5, 7, 1.0) for _ in starts]
        schedule = Steps(tuple(starts), tuple(keeps))
        for layer in range(25):
            begun = [keep for start, keep in zip(starts, keeps, strict=True) if start <= layer]
            assert schedule(layer) == (begun[-1] if begun else None)

    hold(law)


def test_repr_is_code_and_equal_schedules_are_equal() -> None:
    made = [constant(0.5), from_layer(2, 64), pyramid([1, 3], [0.5, 0.1]), per_layer([None, 0.5])]
    for schedule in made:
        assert eval(repr(schedule)) == schedule
    assert len(set(made)) == 4
    assert from_layer(0, 0.5) == constant(0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Steps((), ()),
        lambda: Steps((1, 1), (0.5, 0.5)),
        lambda: Steps((2, 1), (0.5, 0.5)),
        lambda: Steps((-1,), (0.5,)),
        lambda: Steps((1.0,), (0.5,)),  # pyright: ignore[reportArgumentType]
        lambda: Steps((True,), (0.5,)),
        lambda: Steps((0, 1), (0.5,)),
        lambda: Steps((0, 5), (0.5, 0.5), depth=5),
        lambda: Steps((0,), (0.5,), depth=True),
        lambda: Steps((0,), (0.5,), depth=2.5),  # pyright: ignore[reportArgumentType]
        lambda: constant(0.0),
        lambda: constant(1.5),
        lambda: constant(True),
        lambda: constant(0),
        lambda: from_layer(-1, 0.5),
        lambda: pyramid((1, 2), (0.25, 0.5)),
        lambda: pyramid((1, 2), (0.5, 1)),
        lambda: pyramid((1,), (None,)),  # pyright: ignore[reportArgumentType]
        lambda: per_layer([]),
        lambda: per_layer([0.5, -1]),
        lambda: per_layer([0.5, 0.5])(2),
        lambda: constant(0.5)(-1),
    ],
)
def test_bad_schedules(call: Any) -> None:
    with pytest.raises(TokenOpsError):
        call()


def counts(mass: Tensor, budget: float, floor: float) -> list[int]:
    """Tokens of every layer, by the library's rule for ratios."""
    schedule = allocate(mass, budget, floor=floor)
    kept = [schedule(layer) for layer in range(len(mass))]
    assert all(isinstance(keep, float) for keep in kept)
    return [keep_count(keep, mass.shape[1]) for keep in kept if keep is not None]


def masses(draw: Draw, layers: int, n: int) -> Tensor:
    """Scores with many ties, or spread over ten orders of magnitude."""
    dyadic = draw.dyadic(layers, n, most=1).abs()
    dyadic[:, 0] += 1
    return draw.choice(dyadic, draw.normal(layers, n).mul(4).exp())


def affordable(draw: Draw, layers: int, n: int) -> tuple[float, float]:
    """A budget and a floor within it."""
    least = draw.integer(1, n)
    return draw.integer(least * layers, n * layers) / (n * layers), least / n


def test_the_budget_is_exact_and_every_layer_gets_its_floor() -> None:
    def law(draw: Draw) -> None:
        layers, n = draw.integer(1, 6), draw.integer(1, 30)
        budget, floor = affordable(draw, layers, n)
        got = counts(masses(draw, layers, n), budget, floor)
        assert sum(got) == keep_count(budget, layers * n)
        assert all(keep_count(floor, n) <= k <= n for k in got)

    hold(law)


def test_no_other_allocation_keeps_more_mass() -> None:
    def law(draw: Draw) -> None:
        layers, n = draw.integer(1, 3), draw.integer(1, 5)
        budget, floor = affordable(draw, layers, n)
        mass = masses(draw, layers, n).double()
        kept = mass.sort(descending=True).values.cumsum(1)

        def total(ks: Any) -> float:
            return float(sum(kept[layer, k - 1] for layer, k in enumerate(ks)))

        got = counts(mass, budget, floor)
        least = keep_count(floor, n)
        others = itertools.product(range(least, n + 1), repeat=layers)
        best = max(total(ks) for ks in others if sum(ks) == sum(got))
        assert total(got) >= best * (1 - 1e-12)

    hold(law)


def test_more_budget_takes_no_token_away() -> None:
    def law(draw: Draw) -> None:
        layers, n = draw.integer(1, 5), draw.integer(2, 12)
        mass, floor = masses(draw, layers, n), 1 / n
        budgets = [total / (layers * n) for total in range(layers, layers * n + 1)]
        found = [counts(mass, budget, floor) for budget in budgets]
        for less, more in itertools.pairwise(found):
            assert all(a <= b for a, b in zip(less, more, strict=True))

    hold(law)


def test_order_and_scale_of_the_scores_do_not_matter() -> None:
    def law(draw: Draw) -> None:
        layers, n = draw.integer(1, 5), draw.integer(1, 12)
        budget, floor = affordable(draw, layers, n)
        mass = masses(draw, layers, n).double()
        got = counts(mass, budget, floor)
        assert counts(mass[:, draw.permutation(n)], budget, floor) == got
        assert counts(mass * 2.0 ** draw.integer(-9, 9), budget, floor) == got

    hold(law)


@pytest.mark.parametrize("budget", [0.05, 0.11, 0.3, 0.999, 1.0])
def test_equal_layers_share_equally(budget: float) -> None:
    mass = torch.rand(1, 64).expand(7, 64)
    got = counts(mass, budget, 0.01)
    assert max(got) - min(got) <= 1
    assert sorted(got, reverse=True) == got


def test_flat_layers_get_more_than_sharp_ones() -> None:
    sharp = torch.linspace(0, -30, 50).exp()
    flat = torch.ones(50)
    few, many = counts(torch.stack([sharp, flat]), 0.4, 0.02)
    assert few < 10 < many
    assert few + many == 40


@pytest.mark.parametrize(
    "call",
    [
        lambda m: allocate(m[0], 0.5),
        lambda m: allocate(m.long(), 0.5),
        lambda m: allocate(m[:0], 0.5),
        lambda m: allocate(m[:, :0], 0.5),
        lambda m: allocate(-m, 0.5),
        lambda m: allocate(m * torch.nan, 0.5),
        lambda m: allocate(m / 0, 0.5),
        lambda m: allocate(m, 0.0),
        lambda m: allocate(m, 1.5),
        lambda m: allocate(m, 1),
        lambda m: allocate(m, True),
        lambda m: allocate(m, 0.5, floor=0.6),
        lambda m: allocate(m, 0.5, floor=2),
        lambda m: allocate(m, 0.5, floor=0.0),
        lambda m: allocate(m, 0.05),
    ],
)
def test_bad_allocations(call: Any) -> None:
    with pytest.raises(TokenOpsError, match="allocate"):
        call(torch.ones(2, 10))


def test_mass_curves() -> None:
    def law(draw: Draw) -> None:
        b, n, bins = draw.integer(1, 4), draw.integer(1, 12), draw.integer(1, 20)
        scores, visual = masses(draw, b, n), draw.mask(b, n)
        curve = mass_curve(scores, visual, bins=bins)
        real = scores.masked_fill(~visual, 0).sum(1) > 0
        assert curve.shape == (bins,)
        assert float(curve.sum()) == pytest.approx(1.0 if real.any() else 0.0)
        assert (curve >= -1e-12).all()
        assert (curve.diff() <= 1e-9).all()
        if real.any():
            rows = [mass_curve(scores[i : i + 1], visual[i : i + 1], bins=bins) for i in range(b) if real[i]]
            assert_close(curve, torch.stack(rows).mean(0), 1e-12)

    hold(law)


def test_a_bin_for_each_token_is_the_sorted_mass_itself() -> None:
    scores = torch.rand(1, 9, dtype=torch.float64)
    visual = torch.arange(9)[None] != 4
    best = scores[visual].sort(descending=True).values
    assert_close(mass_curve(scores, visual, bins=8), best / best.sum(), 1e-12)
    assert_close(mass_curve(scores, visual, bins=16), (best / best.sum() / 2).repeat_interleave(2), 1e-12)
    pairs = (best / best.sum()).view(4, 2).sum(1)
    assert_close(mass_curve(scores, visual, bins=4), pairs, 1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, v: mass_curve(s[0], v),
        lambda s, v: mass_curve(s, v[:1]),
        lambda s, v: mass_curve(s, v.float()),
        lambda s, v: mass_curve(-s, v),
        lambda s, v: mass_curve(s * torch.nan, v),
        lambda s, v: mass_curve(s, v, bins=0),
        lambda s, v: mass_curve(s, v, bins=True),
    ],
)
def test_bad_curves(call: Any) -> None:
    with pytest.raises(TokenOpsError, match="mass_curve"):
        call(torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool))
