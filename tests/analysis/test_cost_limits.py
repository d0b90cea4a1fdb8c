"""The limits of full-size models: as derived independently, as committed, and where they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import limits
import pytest

from tokenops import Pipeline, Prune, recipes
from tokenops.analysis import DEVICES, break_even, cost
from tokenops.analysis.cost.estimate import first_true
from tokenops.routers import Route
from tokenops.selectors import TopK
from tokenops.selectors.scorers import feature_norm

pytestmark = pytest.mark.hf
CONFIGS = limits.configs()
RESULT = json.loads((Path(__file__).parents[2] / "benchmarks/results/limits.json").read_text("utf-8"))

# speed-up at keep 10 / 20 / 30 %, one decimal, of a roofline computed by another model of the same machine
KNOWN: dict[tuple[str, int], dict[str, tuple[float, float, float]]] = {
    ("LLaVA-1.5-7B", 576): {"prune": (3.1, 3.0, 2.5), "skip": (2.9, 2.8, 2.4), "fastv": (2.7, 2.7, 2.3)},
    ("LLaVA-NeXT-7B", 2880): {"prune": (6.4, 4.1, 3.0), "skip": (5.7, 3.8, 2.8), "fastv": (4.8, 3.4, 2.7)},
    ("Qwen2.5-VL-7B", 1296): {"prune": (2.6, 2.2, 1.9), "skip": (2.5, 2.2, 1.9), "fastv": (2.3, 2.1, 1.8)},
    ("Qwen2.5-VL-7B", 6828): {"prune": (2.5, 2.2, 1.9), "skip": (2.5, 2.1, 1.9), "fastv": (2.3, 2.0, 1.8)},
}


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_known_and_committed_limits(case: tuple[str, int]) -> None:
    name, tokens = case
    machine = limits.tower_rate(DEVICES["h200"])
    committed = {
        (row["method"], row["keep"]): row
        for row in RESULT["limits"]
        if (row["model"], row["tokens"], row["device"], row["scoring"]) == (*case, "h200", "tower rate")
    }
    for i, keep in enumerate(limits.KEEPS):
        for method, pipeline in limits.methods(CONFIGS[name], keep):
            row = limits.limit(CONFIGS[name], tokens, pipeline, machine)
            assert row["time"] == pytest.approx(KNOWN[case][method][i], abs=0.15)
            assert row == {key: committed[method, keep][key] for key in row}


def test_the_language_model_alone() -> None:
    found = [
        cost(CONFIGS["Qwen2.5-VL-7B"], 6828, recipes.uniform(k)).speedup_limit.time_language
        for k in (0.1, 0.2, 0.3)
    ]
    assert found == pytest.approx([9.8, 5.1, 3.5], abs=0.12)


def test_a_layer_reads_its_weights_as_long_as_184_tokens_compute() -> None:
    config = CONFIGS["LLaVA-1.5-7B"]
    few, more = (cost(config, 0, text=n).parts["layers"] for n in (100, 180))
    assert few.seconds == pytest.approx(more.seconds, rel=0.05)
    assert cost(config, 0, text=368).parts["layers"].seconds / few.seconds == pytest.approx(2, rel=0.1)


def test_the_tower_of_qwen_is_a_third_of_all_flops() -> None:
    for tokens in (1296, 6828):
        made = cost(CONFIGS["Qwen2.5-VL-7B"], tokens, dtype="bfloat16")
        assert 0.27 < (made.parts["vision tower"].flops + made.parts["projector"].flops) / made.flops < 0.34


def by_hand(config: Any, pipeline: Pipeline, device: Any, text: int) -> list[bool]:
    """Whether it helps, for every number of tokens in turn."""
    helps = []
    for n in range(1, 260):
        made = cost(config, n, pipeline, device=device, text=text)
        assert made.whole is not None
        helps.append(made.seconds + made.launch_seconds < made.whole.seconds)
    return helps


@pytest.mark.parametrize("launch", [0.0, 5e-7])
def test_break_even_is_the_first_that_helps(launch: float) -> None:
    config, device = CONFIGS["LLaVA-1.5-7B"], replace(DEVICES["a100"], launch=launch)
    pipeline = Pipeline(after_projector=Prune(TopK(feature_norm, 0.35)))
    helps = by_hand(config, pipeline, device, 40)
    found = break_even(config, pipeline, device=device, text=40)
    assert found == helps.index(True) + 1 > 1
    assert all(helps[found + 64 :])


def test_break_even_orders_as_it_should() -> None:
    config, pipeline = CONFIGS["LLaVA-1.5-7B"], recipes.uniform(0.2)
    found = [break_even(config, pipeline, device=replace(DEVICES["h200"], launch=t)) for t in (0, 1e-5, 1e-4)]
    assert None not in found
    assert found == sorted(found, key=lambda n: n or 0)
    many = break_even(config, pipeline, batch=8)
    one = break_even(config, pipeline)
    assert many is not None
    assert one is not None
    assert many < one, "weights are read for all rows at once"


def test_what_cannot_help_never_breaks_even() -> None:
    config = CONFIGS["Qwen2.5-VL-7B"]
    assert break_even(config, recipes.uniform(1.0)) is None
    assert break_even(config, Pipeline()) is None
    assert break_even(config, Pipeline(layers=Route(feature_norm, keep=200)), most=200) is None


def test_a_count_helps_only_above_itself() -> None:
    found = break_even(CONFIGS["LLaVA-1.5-7B"], recipes.uniform(300))
    assert found is not None
    assert found > 300


def test_the_search_copes_with_a_ragged_edge() -> None:
    holds = {70, 73, 75, 76, 80, *range(82, 4000)}
    assert first_true(holds.__contains__, 3999) == 70
    assert first_true(holds.__contains__, 100) == 70
    assert first_true({1, *range(2, 50)}.__contains__, 49) == 1
    assert first_true(set().__contains__, 1) is None
