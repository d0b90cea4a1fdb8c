"""Clocks, statistics and bytes: each against what can be computed by hand."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch

from tokenops import TokenOpsError
from tokenops.analysis import measure, report
from tokenops.analysis.measure import FULL, Limit, Measurement, Ratio, Row, Spread, memory, timing
from tokenops.analysis.measure.limits import device_name
from tokenops.analysis.measure.table import verdict

pytestmark = pytest.mark.usefixtures("frozen_heap")


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 12])
def test_interval_covers_as_often_as_it_says(n: int) -> None:
    """Over all 2^n ways of n values to lie above or below the true median, each as likely."""
    values = list(range(1, n + 1))
    ratio = Ratio.paired(values, [1] * n)
    rank = values.index(round(ratio.low)) + 1
    assert ratio.high == values[n - rank]
    held = 0
    for above in itertools.product((False, True), repeat=n):
        held += rank <= sum(above) <= n - rank
    assert ratio.confidence == pytest.approx(held / 2**n)
    assert rank == 1 if n < 6 else ratio.confidence >= 0.95
    if n >= 6:
        wider = sum(rank + 1 <= sum(a) <= n - rank - 1 for a in itertools.product((False, True), repeat=n))
        assert wider / 2**n < 0.95, "a narrower interval would do"


def test_ratio_pairs_rounds() -> None:
    ratio = Ratio.paired([1.0, 10.0, 100.0], [0.5, 5.0, 50.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError):
        Ratio.paired([1.0], [])
    with pytest.raises(ValueError):
        Ratio.paired([], [])


@pytest.mark.parametrize("n", range(1, 10))
def test_no_verdict_without_evidence(n: int) -> None:
    """Not even where every round says the same: below six rounds that is no rare chance."""
    for factor, expected in ((1.01, "faster"), (0.99, "slower"), (1.0, "no difference")):
        ratio = Ratio.paired([factor] * n, [1.0] * n)
        assert ratio.verdict == (expected if n >= 6 else "too few runs to tell")
        assert (ratio.confidence >= 0.95) == (n >= 6)


@pytest.mark.parametrize("function", [measure, report])
def test_runs_by_default_are_enough(function: Any) -> None:
    runs = inspect.signature(function).parameters["runs"].default
    assert Ratio.paired([2.0] * runs, [1.0] * runs).verdict == "faster"


def test_spread_of_one_value() -> None:
    assert Spread((2.0,)).quartiles == (2.0, 2.0)
    assert Spread((2.0,)).as_dict() == {"median": 2.0, "quartiles": [2.0, 2.0], "values": [2.0]}


def test_peak_is_what_is_held_at_once() -> None:
    def call() -> torch.Tensor:
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a
        c = torch.empty(500)
        del b
        return c

    peak, result = memory.peak_bytes(call, torch.device("cpu"))
    assert result.shape == (500,)
    assert peak is not None
    assert 12_000 <= peak < 12_500
    small, _ = memory.peak_bytes(lambda: torch.empty(250), torch.device("cpu"))
    assert small is not None
    assert 1000 <= small < 1500


def test_no_profiler_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "kineto_available", lambda: False)
    assert memory.peak_bytes(lambda: 3, torch.device("cpu")) == (None, 3)


class FakeCuda:
    """Stands in for torch.cuda and writes down what is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        self.now = 0.0
        self.allocated, self.peak = 100, 100
        fake, said = self, self.said

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                said.append("record")
                self.at = fake.now

            def synchronize(self) -> None:
                said.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return 1e3 * (end.at - self.at)

        class on_device:
            def __init__(self, device: torch.device) -> None:
                said.append(str(device))

            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

        for name, value in {
            "Event": Event,
            "device": on_device,
            "synchronize": lambda *device: said.append("synchronize"),
            "reset_peak_memory_stats": lambda device: said.append("reset"),
            "memory_allocated": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "get_device_name": lambda device: "NVIDIA H200",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_cuda_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    name, timer = timing.timer_for(torch.device("cuda", 1))
    assert name == "cuda"
    elapsed = timer()
    fake.now = 0.25
    assert elapsed() == pytest.approx(0.25)
    fake.now = 0.5
    assert elapsed() == pytest.approx(0.5)
    assert fake.said == ["cuda:1", "synchronize", "record", *["cuda:1", "record", "wait"] * 2]
    with pytest.raises(TokenOpsError, match="cuda"):
        timing.timer_for(torch.device("cuda", 0), "wall")


def test_cuda_memory_is_what_comes_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)

    def call() -> str:
        fake.said.append("call")
        fake.peak = 175
        return "result"

    assert memory.peak_bytes(call, torch.device("cuda", 0)) == (75, "result")
    assert fake.said == ["synchronize", "reset", "call", "synchronize"]


def test_device_names(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    assert device_name(torch.device("cuda", 0)) == "h200"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4090")
    assert device_name(torch.device("cuda", 0)) == "rtx4090"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something Else")
    assert device_name(torch.device("cuda", 0)) is None


def test_timers_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert timing.timer_for(cpu) == ("processor", timing.processor)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert timing.timer_for(cpu) == ("wall", timing.wall)
    assert timing.timer_for(cpu, "processor") == ("processor", timing.processor)
    with pytest.raises(TokenOpsError, match="CPU or a CUDA"):
        timing.timer_for(torch.device("meta"))


def row(low: float, median: float, high: float, limit: Limit | None = None, confidence: float = 0.96) -> Row:
    ratio = Ratio(median, low, high, confidence)
    times = Spread((0.001, 0.002))
    return Row("a", "A()", times, times, ratio, ratio, times, 2**20, None, "no profiler", (3.0, 1.0), limit)


def test_verdicts_say_it_plainly() -> None:
    assert "faster here" in verdict(row(1.1, 1.5, 1.6))
    assert "does not help here, it is slower" in verdict(row(0.5, 0.6, 0.9))
    assert "does not help here, no difference" in verdict(row(0.9, 1.2, 1.3))
    said = verdict(row(1.1, 1.5, 1.6, confidence=0.9375))
    assert said == "a: too few runs to tell: 1.50x [1.10, 1.60] at 94%.", "nothing about decoding either"
    limit = Limit(2.0, 2.5, 300, "h200", "not counted: mine")
    said = verdict(row(1.1, 1.5, 1.6, limit))
    for words in (
        "Estimated limit on h200: 2.00x",
        "below 300 visual tokens",
        "Not counted: mine",
        "Decoding is faster",
    ):
        assert words in said
    assert row(1.1, 1.5, 1.6, limit).of_limit == 0.75
    assert row(1.1, 1.5, 1.6, Limit(reason="why")).of_limit is None


def test_table_shows_a_missing_number_as_missing() -> None:
    settings = dict.fromkeys(("model", "dtype", "timer"), "x")
    settings |= dict.fromkeys(("layers", "batch", "visual_tokens", "text_tokens", "runs"), 1)  # type: ignore[arg-type]
    environment = dict.fromkeys(("machine", "processor", "threads", "torch"), "y")
    rows = (row(1, 1, 1), row(1, 1, 1))
    measured = Measurement(
        (rows[0].__class__(**vars(rows[0]) | {"name": FULL}), rows[1]), settings, environment
    )
    line = next(line for line in measured.table().splitlines() if line.startswith("a "))
    assert line.split()[-2:] == ["?", "1"]
