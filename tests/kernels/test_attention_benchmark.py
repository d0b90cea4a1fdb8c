"""The benchmark of ragged attention runs, its forms agree, and its committed result keeps the bar."""

from __future__ import annotations

import json
from pathlib import Path

import ragged_attention as benchmark
import tables_limits
import torch

from tokenops.kernels.attention import Segments

RESULT = json.loads(
    (Path(benchmark.__file__).parent / "results" / "ragged_attention.json").read_text(encoding="utf-8")
)


def test_benchmark_runs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    benchmark.main(["--smoke", "--out", str(tmp_path / "result.json")])
    assert torch.get_num_threads() == threads
    small = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(small) == list(RESULT)
    assert list(small["settings"]) == list(RESULT["settings"])
    assert [row["form"] for row in small["rows"]] == [row["form"] for row in RESULT["rows"]]
    for row in small["rows"]:
        assert set(row) == set(RESULT["rows"][0])
        assert row["apart"] < 1e-5
        assert row["backend"] == "loop"
        assert row["ratio"][1] > 0


def test_every_form_is_explained_and_shown() -> None:
    """The one without a mask in causal rows only: elsewhere it would see padding."""
    forms = {causal: {row["form"] for row in RESULT["rows"] if row["causal"] == causal} for causal in (0, 1)}
    assert forms[0] == {"segments", "segments incl. packing", "padded", "packed mask"}
    assert forms[1] - forms[0] == {"padded right, is_causal"}
    shown = [
        line.split(" | ")[2] for line in tables_limits.ragged_attention().splitlines() if "tokens," in line
    ]
    assert shown == [row["form"] for row in RESULT["rows"] if row["form"] != "segments"]
    assert all(f"``{form}``" in str(benchmark.__doc__) for form in forms[1])


def test_packing_is_timed_from_padded_to_padded_and_forms_have_the_same_gradients() -> None:
    pack = [torch.randn(9, h, 8) for h in (4, 2, 2)]
    weight = torch.randn(9, 4, 8)
    for causal in (False, True):
        found = benchmark.contenders(pack, weight, Segments.of([2, 4, 3]), causal)
        both = found["segments incl. packing"]
        assert [x.shape for x in both.inputs] == [(3, 4, 4, 8), (3, 2, 4, 8), (3, 2, 4, 8)]
        assert both.function(*both.inputs).shape == both.weight.shape == (3, 4, 4, 8)
        gradients = {}
        for name, form in found.items():
            leaves = [x.clone().requires_grad_() for x in form.inputs]
            gradients[name] = torch.autograd.grad(form.function(*leaves), leaves, form.weight)
        for name, form in found.items():
            for x, wanted in zip(gradients[name], gradients["segments"], strict=True):
                torch.testing.assert_close(form.packed(x), wanted)


def test_committed_result_is_of_the_full_size_and_keeps_the_bar() -> None:
    assert {name: RESULT["settings"][name] for name in benchmark.FULL} == benchmark.FULL
    assert RESULT["settings"]["threads"] == 1
    assert all(row["apart"] < 1e-5 for row in RESULT["rows"])
    (bar,) = RESULT["bars"]
    assert bar["least"] >= bar["wanted"] == benchmark.BAR == 2
    longest = max(benchmark.FULL["lengths"][0])
    assert bar["what"] == "padded under a mask / segments"
    ratios = [r["ratio"][1] for r in RESULT["rows"] if (r["form"], r["longest"]) == ("padded", longest)]
    assert (bar["least"], bar["most"]) == (min(ratios), max(ratios))
    assert len(ratios) == 8
