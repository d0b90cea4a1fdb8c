"""Reading result files and writing tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, first column left, the others right."""
    header = list(header)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
