"""Bytes: what a call holds at its peak, and what its cache stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, kineto_available, profile

NO_PROFILER = "this build of torch has no profiler that sees allocations"


def stored_bytes(cache: Any) -> int:
    """Bytes of the keys and values a cache really holds.

    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(keys=torch.zeros(1, 2, 5, 8), values=torch.zeros(1, 2, 5, 8))
    >>> stored_bytes(SimpleNamespace(layers=[layer, layer]))
    1280
    """
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def peak_bytes(call: Callable[[], Any], device: torch.device) -> tuple[int | None, Any]:
    """Most bytes that ``call`` holds at once beyond what was there before, and its result.

    On CUDA as the caching allocator counts them; on a CPU every allocation and release that torch's
    profiler sees. None where there is no such profiler. A collection of garbage during the call would count
    as released by it.

    >>> peak_bytes(lambda: torch.zeros(1000).sum(), torch.device("cpu"))[0] >= 4000
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    if not kineto_available():
        return None, call()
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    results: Any = record.profiler.kineto_results if record.profiler is not None else None
    events = [e for e in results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0), result


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler reports each start on standard error otherwise."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
