"""Timing several contenders on the same fresh data in turn, and the memory that one call holds."""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import numpy as np
import torch
from torch import Tensor

from tokenops.analysis.measure import memory
from tokenops.analysis.measure.timing import settle_allocator

Mask = Callable[[Tensor], Tensor]


def clock(mask: Mask, sets: list[Tensor], backward: bool) -> float:
    """Milliseconds of processor time per call over all ``sets`` but the first, which warms up.

    What else runs on the machine counts only as far as it empties the caches.
    """
    leaves = [x.detach().requires_grad_(backward) for x in sets]
    weights = {d: torch.randn(sets[0].shape).to(d) for d in (torch.float32, torch.bfloat16)}
    start = 0.0
    with torch.set_grad_enabled(backward):
        for i, x in enumerate(leaves):
            if i == 1:
                start = time.process_time()
            p = mask(x)
            if backward:
                torch.autograd.grad(p, x, weights[p.dtype])
        return 1e3 * (time.process_time() - start) / (len(leaves) - 1)


def interleave(
    contenders: dict[str, Mask], make: Callable[[], Tensor], sets: int, repeats: int, backward: bool
) -> dict[str, np.ndarray]:
    """Milliseconds of each contender in each repetition, one more repetition to warm up.

    How far buffers lie from one another, modulo a page, decides up to a tenth of a short call; so data move
    from one repetition to the next.
    """
    names, times = list(contenders), {name: [] for name in contenders}
    settle_allocator()
    gc.disable()
    shift, between = random.Random(0), []
    for i in range(repeats + 1):
        data = []
        for _ in range(sets + 1):
            between.append(torch.empty(shift.randrange(16, 4096)))
            data.append(make())
        del between[: -8 * sets]
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            times[name].append(clock(contenders[name], data, backward))
    gc.enable()
    return {name: np.array(values[1:]) for name, values in times.items()}


def in_turn(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """What each call says it took in each round, the order turning; one more round to warm up."""
    names, took = list(calls), {name: [] for name in calls}
    settle_allocator()
    gc.collect()
    gc.disable()
    for i in range(rounds + 1):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            took[name].append(calls[name]())
    gc.enable()
    return {name: np.array(values[1:]) for name, values in took.items()}


def sets_for(n: int) -> int:
    """Data sets per repetition: more of the short ones."""
    return max(2, min(8, 16384 // n))


def spread(values: np.ndarray) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(f"{q:.4g}") for q in np.quantile(values, [0.25, 0.5, 0.75])]


def held_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that a call holds at once on the CPU, beside what was there before.

    Raises:
        RuntimeError: this torch has no profiler that sees allocations.
    """
    peak, _ = memory.peak_bytes(call, torch.device("cpu"))
    if peak is None:
        raise RuntimeError(memory.NO_PROFILER)
    return peak


def peak_bytes(mask: Mask, x: Tensor) -> int:
    """Most bytes that a forward and backward pass holds at once, beside the scores."""
    x = x.detach().requires_grad_()
    torch.autograd.grad(mask(x).sum(), x)

    def both() -> None:
        p = mask(x)
        torch.autograd.grad(p, x, torch.ones_like(p))

    return held_bytes(both)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "machine": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def save(result: dict[str, Any], path: Path) -> None:
    """As JSON, one line for every element of a list."""
    parts = []
    for key, value in result.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in value] if isinstance(value, list) else []
        body = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else json.dumps(value, ensure_ascii=False)
        parts.append(f' "{key}": {body}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
