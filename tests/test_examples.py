"""Every script in ``examples`` runs as a user runs it, and says what it should."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenops

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
# arguments that make a script quick, and what it must print
RUNS = {
    "break_even.py": ("--device rtx4090", r"uniform +\d\.\d\d +\d\.\d\d +\d+ +\d+\n"),
    "calibrate_alvts.py": (
        "--samples 2 --epochs 1 --out {out}",
        r"in each layer: \(28.0, 28.0, ",
    ),
    "compare_methods.py": ("--scenes 1", r"divprune +14 tokens a layer  mean [01]\.\d+"),
    "compress_generate.py": ("", r"what digit is .* with  28 of 144 tokens: (\w+) +\(truth: \1\)"),
    "fast_attention.py": (
        "--rounds 1",
        r"padding [5-9]\d%, largest difference .* (0\.0e\+00|\d\.\de-0[5-9])",
    ),
    "hybrid.py": ("--scenes 1", r"both +tokens \(14.0, 14.0, 14.0, 14.0\)"),
    "own_scorer.py": ("--scenes 1", r"the contract holds\nmine +mean"),
    "train_selector.py": ("--steps 1 --batch 2 --out {out}", r"mean [01]\.\d+"),
}
ELSEWHERE = {"report.py", "timm_routing.py"}  # tests of their own


def run(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script in this process, as ``python examples/<name> ...``."""
    arguments = RUNS[name][0].format(out=out).split()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.hf
@pytest.mark.parametrize("name", sorted(RUNS))
@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, tmp_path / "out", monkeypatch)
    assert re.search(RUNS[name][1], capsys.readouterr().out)
    if "{out}" in RUNS[name][0]:
        assert tokenops.load(tmp_path / "out").stages


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_short_and_listed(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"examples/{name}" in text, "how to run it"
    assert f"[{name}]({name})" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert name in RUNS.keys() | ELSEWHERE


def test_the_list_names_scripts_only() -> None:
    linked = re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert not [link for link in linked if not (FOLDER / link).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_in_a_process_of_its_own(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage:")
