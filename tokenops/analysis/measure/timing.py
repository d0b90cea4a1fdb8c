"""What time is measured with, and in which order contenders run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from tokenops.errors import TokenOpsError

Elapsed = Callable[[], float]
Timer = Callable[[], Elapsed]
"""Started by a call; what it returns tells the seconds since then, as often as it is asked."""
TIMERS = ("wall", "processor", "cuda")
T = TypeVar("T")


def wall() -> Elapsed:
    """Seconds on the wall.

    >>> elapsed = wall()
    >>> 0 <= elapsed() <= elapsed()
    True
    """
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def processor() -> Elapsed:
    """Seconds of processor time of this process, all threads together."""
    start = time.process_time()
    return lambda: time.process_time() - start


def cuda_events(device: torch.device) -> Timer:
    """Seconds between two events on the device's current stream.

    The first is recorded when the device has nothing left to do, the second is waited for.
    """

    def start() -> Elapsed:
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            first = torch.cuda.Event(enable_timing=True)
            first.record()

        def elapsed() -> float:
            with torch.cuda.device(device):
                last = torch.cuda.Event(enable_timing=True)
                last.record()
                last.synchronize()
            return first.elapsed_time(last) / 1e3

        return elapsed

    return start


def timer_for(device: torch.device, name: str | None = None) -> tuple[str, Timer]:
    """The timer of that name, or what suits the device.

    A GPU is timed by events. On a CPU it is processor time with one thread, which other programs disturb
    least, and time on the wall with more, where processor time would count every waiting thread.

    Raises:
        TokenOpsError: an unknown name, events without a GPU, another clock with one, or another device.
    """
    if device.type not in ("cpu", "cuda"):
        raise TokenOpsError("measure", "a model on a CPU or a CUDA device", device)
    if name is None:
        name = "cuda" if device.type == "cuda" else "processor" if torch.get_num_threads() == 1 else "wall"
    if name not in TIMERS:
        raise TokenOpsError("measure", f"a timer among {', '.join(TIMERS)}", repr(name))
    if (name == "cuda") != (device.type == "cuda"):
        raise TokenOpsError("measure", "timer='cuda' for CUDA models and no others", f"{name} on {device}")
    return name, cuda_events(device) if name == "cuda" else wall if name == "wall" else processor


def settle_allocator() -> None:
    """Free one block of 32 MB, as a process that has run for a while will have done.

    Until then glibc gives large buffers back to the system whenever they are freed, and each new one costs a
    page fault every 4 KB: up to a tenth of a forward pass, and now more, now less of it.

    >>> settle_allocator()
    """
    torch.zeros(2**23 - 2**14, dtype=torch.float32, device="cpu")


def interleaved(names: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every contender once per round, forwards and backwards in turn, so that drift hits all alike.

    >>> [name for _, name in interleaved("AB", 2)]
    ['A', 'B', 'B', 'A']
    """
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name
