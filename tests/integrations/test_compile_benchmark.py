"""The benchmark of compiled routing runs, and says what it compared."""

from __future__ import annotations

import json
from pathlib import Path

import compiled_routing


def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    compiled_routing.main(["--smoke", "--device", "cpu", "--out", str(out)])
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert set(row["ms"]) == {"unrouted eager", "unrouted compiled", "routed eager", "routed compiled"}
    assert all(0 < low <= middle <= high for low, middle, high in row["ms"].values())
    assert set(row["ratios"]) == {
        "unrouted compiled / unrouted eager",
        "routed compiled / routed eager",
        "routed eager / unrouted eager",
        "routed compiled / unrouted compiled",
    }
