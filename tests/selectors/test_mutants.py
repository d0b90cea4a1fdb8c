"""The fast tests notice every mistake listed in tests/mutants.py, and pass without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
FAST = (
    "tests/selectors/test_soft_topk.py",
    "tests/selectors/test_threshold_family.py",
    "tests/contracts/test_contracts.py",
)


def copied(place: Path) -> Path:
    """The package and its fast tests, away from the working tree."""
    skip = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "tokenops", place / "tokenops", ignore=skip)
    for name in ("pyproject.toml", "conftest.py", "tests/conftest.py", *FAST):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    return place


def run(place: Path) -> subprocess.CompletedProcess[str]:
    chosen = "(relaxation or threshold_family or soft_topk) and not compile"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-m", "not slow", "-k", chosen, *FAST],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_list_is_true(mutant: Mutant) -> None:
    assert (ROOT / "tokenops" / mutant.file).read_text().count(mutant.right) == 1


@pytest.mark.slow
def test_the_fast_tests_pass(tmp_path: Path) -> None:
    done = run(copied(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_fast_tests_notice(mutant: Mutant, tmp_path: Path) -> None:
    file = copied(tmp_path) / "tokenops" / mutant.file
    file.write_text(file.read_text().replace(mutant.right, mutant.wrong))
    done = run(tmp_path)
    assert done.returncode == 1, f"no test noticed: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert " failed" in done.stdout, f"the mutant does not run: {done.stdout[-2000:]}"
