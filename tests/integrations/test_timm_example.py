"""The example and the benchmark of routed vision transformers run, and the committed numbers are complete."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = {"skip", "exit", "prune"}


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return ran.stdout


def test_the_example_prints_tokens_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "examples" / "timm_routing.py"
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(path), "--size", "64", "--rounds", "1"])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    patches = [float(line[18:].split()[1]) for line in lines[1:]]
    assert patches == [16, 11, 8, 4, 12.2, 10, 7]  # three blocks of 16, nine of what is left


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    run("benchmarks/timm_routing.py", "--smoke", "--rounds", "1", "--out", str(out))
    small, committed = (json.loads(path.read_text()) for path in (out, RESULT))
    assert small["settings"].keys() == committed["settings"].keys()
    assert [r.keys() for r in small["rows"]] == [r.keys() for r in committed["rows"]]


RESULT = ROOT / "benchmarks" / "results" / "timm_routing.json"


def test_the_committed_result_is_of_the_whole_model() -> None:
    result = json.loads(RESULT.read_text())
    settings = result["settings"]
    assert (settings["size"], settings["blocks"], settings["threads"]) == ([224, 224], 12, 1)
    assert not settings["smoke"]
    rows = {(r["method"], r["keep"]): r for r in result["rows"]}
    assert {key for key in rows if key[1] < 1} == {(m, k) for m in METHODS for k in (0.7, 0.5, 0.3)}
    assert rows["skip", 0.5]["patches"] == rows["prune", 0.5]["patches"] == 98
    assert all(r["counted"] >= 1 for r in rows.values())
