"""The benchmarks of speed run from end to end at small sizes, and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import draw_growth
import gpu_attention
import gpu_prefill
import gpu_shapes
import growth
import overhead
import pytest
import routing_cost
import scorer_cost
import tables_speed
import torch
from interleaved import held_bytes, in_turn
from torch.utils.flop_counter import FlopCounterMode

import tokenops
from tokenops import recipes
from tokenops.integrations import low_rank_factors

pytestmark = pytest.mark.usefixtures("frozen_heap")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU = ["--device", "cpu", "--small", "--rounds", "1"]


def committed(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def run(benchmark: Any, out: Path, *arguments: str) -> dict[str, Any]:
    benchmark.main([*arguments, "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def same_fields(small: dict[str, Any], full: dict[str, Any]) -> None:
    assert list(small) == list(full)
    assert set(small["settings"]) == set(full["settings"])
    for name in set(small) - {"settings"}:
        assert {tuple(row) for row in small[name]} <= {tuple(row) for row in full[name]}


def test_contenders_take_turns_and_the_first_round_warms_up() -> None:
    order: list[str] = []
    took = in_turn({name: lambda name=name: float(order.append(name) or len(order)) for name in "abc"}, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert took["a"].tolist() == [6.0, 8.0]


def test_bytes_held_are_those_of_the_largest_moment() -> None:
    def call() -> None:
        one = torch.zeros(1000)
        del one
        two = torch.zeros(2000), torch.zeros(500)
        del two

    assert 10_000 <= held_bytes(call) < 12_000


def test_overhead(tmp_path: Path) -> None:
    small = run(overhead, tmp_path / "o.json", "--smoke")
    same_fields(small, committed("overhead"))
    apart = {row["name"]: row["logits_apart"] for row in small["rows"]}
    assert {name for name, value in apart.items() if value} == {"prune, no shortcut", "route, no shortcut"}


def test_scorer_cost(tmp_path: Path) -> None:
    small = run(scorer_cost, tmp_path / "s.json", "--smoke")
    same_fields(small, committed("scorer_cost_xeon"))
    for row in small["agreement"]:
        assert all(value < 1e-5 for name, value in row.items() if name.endswith("error"))


def test_plain_scorer_is_the_formula() -> None:
    scorer = scorer_cost.trained(6).double()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    q, k = (proj(x)[0].detach() for proj in (scorer.q_proj, scorer.k_proj))
    expected = [sum(float(q[i] @ k[j]) for j in range(5)) / 5 / scorer.hidden**0.5 for i in range(5)]
    torch.testing.assert_close(
        scorer_cost.plain_of(scorer)(x)[0], torch.tensor(expected, dtype=torch.float64)
    )


def test_growth(tmp_path: Path) -> None:
    small = run(growth, tmp_path / "g.json", "--smoke")
    same_fields(small, committed("growth"))
    assert {row["method"] for row in small["selection"]} == set(growth.METHODS)
    # below the sizes that fill a chunk, memory of the learned scorer is linear in N already
    learned = next(e for e in small["exponents"] if e["what"] == "LearnedScorer + TopK")
    assert learned["memory"] == pytest.approx(1, abs=0.1)


def test_exponents() -> None:
    assert growth.exponent([2, 4, 16], [5 * n**1.5 for n in (2, 4, 16)]) == 1.5


def test_picture_of_growth(tmp_path: Path) -> None:
    draw_growth.main(["--out", str(tmp_path / "g.png")])
    assert (tmp_path / "g.png").stat().st_size > 10_000
    assert (ROOT / "docs" / "pictures" / "growth.png").stat().st_size <= 100_000


@pytest.mark.hf
def test_gpu_prefill_at_small_size(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    first = run(gpu_prefill, out, *GPU, "--modes", "eager", "--models", "LLaVA-1.5-7B")
    assert {row["model"] for row in first["prefill"]} == {"LLaVA-1.5-7B"}
    result = run(gpu_prefill, out, *GPU, "--modes", "eager", "--models", "Qwen2.5-VL-7B, 1,296")
    assert result["prefill"][:5] == first["prefill"], "other models stay"
    rows = {(row["model"], row["name"]): row for row in result["prefill"]}
    assert len(rows) == 10
    assert not [row["failed"] for row in rows.values() if "failed" in row]
    for (model, name), row in rows.items():
        if name == "unattached":
            continue
        keep = {"route 11 %": 1 / 9}.get(name) or int(name.split()[1]) / 100
        n, text = (16, 64) if model == "LLaVA-1.5-7B" else (64, 66)
        assert row["kv_ratio"] == pytest.approx((int(keep * n + 1e-6) + text) / (n + text))
        assert row["logits_apart"] == 0
        assert row["peak_MB"] > 0
        assert row["share"] == pytest.approx(row["speedup"][1] / row["limit"])
    assert "met" in rows["LLaVA-1.5-7B", "route 11 %"]
    assert "Qwen2.5-VL-7B, 1,296, eager, prune 20 %" in tables_speed.gpu_prefill(result)


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["compiled", "reduce-overhead"])
@pytest.mark.parametrize("model", gpu_shapes.SHAPES)
def test_gpu_prefill_compiled(tmp_path: Path, model: str, mode: str) -> None:
    result = run(gpu_prefill, tmp_path / "p.json", *GPU, "--modes", "eager", mode, "--models", model)
    assert len(result["prefill"]) == 5 + 3
    assert not [row["failed"] for row in result["prefill"] if "failed" in row]
    assert max(row["logits_apart"] for row in result["prefill"]) < 0.05, "bfloat16, in another order"


def test_a_cell_that_fails_says_so() -> None:
    def broken() -> None:
        raise RuntimeError("out of luck\nand of memory")

    at = gpu_prefill.Setting(gpu_prefill.options(GPU))
    calls: dict[str, Any] = {"routed": broken}
    assert list(gpu_prefill.warm(calls, at, {})) == [
        {"name": "routed", "failed": "RuntimeError: out of luck"}
    ]
    assert not calls


def test_results_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    path, rows = tmp_path / "p.json", {"prefill": [{"model": "a"}], "attention": []}
    path.write_text(json.dumps(rows | {"settings": {"device": "one"}}), encoding="utf-8")
    assert gpu_prefill.earlier(path, {"device": "one"})["prefill"] == rows["prefill"]
    assert gpu_prefill.earlier(path, {"device": "two"})["prefill"] == []


@pytest.mark.hf
def test_full_sizes_are_those_of_the_models() -> None:
    for shape in gpu_shapes.SHAPES.values():
        config = shape.config(small=False)
        tower = config.vision_config
        if config.model_type == "qwen2_5_vl":
            assert shape.size[0] * shape.size[1] == shape.tokens
        else:
            views = 1 if config.model_type == "llava" else 5
            assert views * (tower.image_size // tower.patch_size) ** 2 == shape.tokens
        with torch.device("meta"):
            numbers = sum(p.numel() for p in shape.model(config).parameters())
        assert 7.0e9 < numbers < 8.4e9


def test_attention_backends_agree_with_the_padded_batch(tmp_path: Path) -> None:
    at = gpu_prefill.Setting(gpu_prefill.options(GPU))
    rows = gpu_attention.attention_rows(at.device, torch.float32, True, 1, at.seconds)
    assert {row["batch"] for row in rows} == set(gpu_attention.BATCHES)
    ran = [row for row in rows if "ms" in row]
    assert max(row["apart"] for row in ran) < 1e-5
    assert {row["backend"] for row in ran} >= {"padded sdpa", "loop"}
    assert all(row["failed"] for row in rows if "ms" not in row)
    lengths = gpu_attention.lengths_of(16, small=False)
    assert len(set(lengths)) == 16
    assert 200 <= min(lengths) < max(lengths) <= 1500


@pytest.mark.parametrize("name", ["overhead", "scorer_cost", "growth"])
def test_committed_results_say_what_they_are(name: str) -> None:
    settings = committed(name)["settings"]
    assert settings["threads"] == 1
    assert settings["processor"]
    assert settings["took_s"] > 0


def test_both_forms_of_the_scorer_chose_the_same_tokens() -> None:
    for row in committed("scorer_cost")["agreement"]:
        assert {apart["closed_plain"] for apart in row["topk_apart"].values()} == {0}


@pytest.mark.parametrize("table", [t for t in tables_speed.TABLES if not t.__name__.startswith("gpu")])
def test_tables_of_speed(table: Any) -> None:
    text = table()
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert text.count("\n|") > 2


@pytest.mark.parametrize("rank", [4, 8])
def test_scoring_is_counted_as_it_is_computed(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {"LAYERS": 2, "WIDTH": 32, "FFN": 48, "SIDE": 6}.items():
        monkeypatch.setattr(routing_cost, name, value)
    model, inputs = routing_cost.build(2, 32, 48, 2, 6), routing_cost.prompt(side=6)

    def counted(pipeline: tokenops.Pipeline) -> int:
        with torch.no_grad(), tokenops.attach(model, pipeline), FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return counter.get_total_flops()

    routed = tokenops.Pipeline(layers=routing_cost.Route(routing_cost.first_feature, 0.25))
    scored = recipes.alvts(low_rank_factors(model, rank, svd="logits"), 0.25)
    wanted = routing_cost.flops(9, rank) - routing_cost.flops(9)
    assert counted(scored) - counted(routed) == wanted
