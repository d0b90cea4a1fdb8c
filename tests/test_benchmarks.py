"""The benchmark of the relaxations runs, its reference is right, and its page says what it measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import relaxation_reference as reference
import tables
import torch

from tokenops.selectors import relaxations

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "relaxations.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "relaxations.json").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_reference_computes_the_same_operator() -> None:
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 20, dtype=torch.float64)
    ours, theirs = relaxations.sigmoid_topk(x, 7), reference.bisection_topk(x, 7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((p * weight).sum(), x)[0] for p in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_one_hot_reference_estimates_the_same_mask_and_gradient() -> None:
    x, weight = torch.tensor([[1.0, 0.5, 0.0, -1.0]], requires_grad=True), torch.tensor([1.0, -1.0, 2.0, 0.0])
    found = []
    for mask in (
        relaxations.perturbed_topk(x, 2, samples=20_000),
        reference.perturbed_one_hot(x, 2, 20_000, 1.0),
    ):
        assert mask.sum().item() == pytest.approx(2, abs=1e-5)
        found.append((mask.detach(), torch.autograd.grad((mask * weight).sum(), x)[0]))
    (ours, gradient), (theirs, estimate) = found
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03)
    torch.testing.assert_close(gradient, estimate, rtol=0, atol=0.08)


def test_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    script = [
        sys.executable,
        "benchmarks/relaxations.py",
        "--sizes",
        "16",
        "--repeats",
        "1",
        "--compile",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*script, "--out", str(out)], cwd=ROOT, env=environment, check=True, capture_output=True)
    small = json.loads(out.read_text())
    assert list(small) == list(RESULT)
    assert small["settings"]["missing"] == ["torch.compile"]
    for name in ("against_bisection", "sum_errors", "members", "against_entmax"):
        assert len(small[name]) * 3 == len(RESULT[name]), "three sizes are committed"
        assert set(small[name][0]) == set(RESULT[name][0])
    assert all(value[1] > 0 for row in small["against_bisection"] for value in row["ratio"].values())
    assert told(small) == told(RESULT)


def told(result: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What difficult inputs give here, but for rounding errors, which differ between machines."""
    rows = {(row["what"], row["input"]): row["ours"] for row in result["elsewhere"]}
    return {what: ours for what, ours in rows.items() if "off by" not in ours}


def test_committed_result_is_complete() -> None:
    assert not RESULT["settings"]["missing"]
    assert RESULT["settings"]["threads"] == 1


def test_page_shows_the_committed_result() -> None:
    bars = {bar["what"]: bar for bar in RESULT["bars"]}
    assert len(bars) == 8
    for what, bar in bars.items():
        assert f"| {what} | {bar['wanted']:g}× | {bar['least']:.3g}× | {bar['median']:.3g}× |" in PAGE
    assert tables.render(PAGE) == PAGE, "run python benchmarks/tables.py"


def test_blocks_of_the_page_run() -> None:
    names: dict[str, object] = {}
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        exec(compile(block, "relaxations.md", "exec"), names)


def test_pictures_of_the_page_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 5
    assert not [name for name in pictures if not (ROOT / "docs" / name).is_file()]
