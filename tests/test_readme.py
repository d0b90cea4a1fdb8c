"""Every Python block of README runs, in order, on the pocket VLM; every table is what the results say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenops import pocket, unregister
from tokenops.pocket.evaluate import encode
from tokenops.pocket.scorer_training import Questions

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.hf
def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = pocket.load()
    scenes = pocket.scenes(2, "heldout", seed=0)
    inputs = encode(processor, scenes, [scene.questions()[0] for scene in scenes])
    names = {"model": model, "processor": processor, "records": Questions(8, seed=0)}
    names["inputs"] = {**inputs, "max_new_tokens": 2}
    assert len(BLOCKS) >= 4
    try:
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
            assert "forward" not in vars(model.model)
    finally:
        unregister("scorer", "far_from_the_mean")


def test_tables_are_up_to_date() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0


def test_the_support_table_is_that_of_the_site() -> None:
    head = "| | LLaVA-1.5 |"
    tables = [
        (ROOT / page).read_text().partition(head)[2].partition("\n\n")[0]
        for page in ("README.md", "docs/support.md")
    ]
    assert tables[0] == tables[1] != ""
