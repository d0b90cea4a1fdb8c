"""The benchmark of ragged attention runs, its forms agree, and its committed result keeps the bar."""

from __future__ import annotations

import json
from pathlib import Path

import ragged_attention as benchmark
import torch

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


def test_committed_result_is_of_the_full_size_and_keeps_the_bar() -> None:
    assert {name: RESULT["settings"][name] for name in benchmark.FULL} == benchmark.FULL
    assert RESULT["settings"]["threads"] == 1
    assert all(row["apart"] < 1e-5 for row in RESULT["rows"])
    (bar,) = RESULT["bars"]
    assert bar["least"] >= bar["wanted"] == benchmark.BAR == 2
    longest = max(benchmark.FULL["lengths"][0])
    ratios = [r["ratio"][1] for r in RESULT["rows"] if (r["form"], r["longest"]) == ("padded", longest)]
    assert (bar["least"], bar["most"]) == (min(ratios), max(ratios))
    assert len(ratios) == 8
