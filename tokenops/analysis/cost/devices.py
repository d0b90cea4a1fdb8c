"""Devices as data: how fast they multiply, how fast they read memory, what one more kernel costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real

import torch

from tokenops.errors import TokenOpsError


@dataclass(frozen=True)
class Device:
    r"""A machine as a roofline.

    .. math:: t = \max\Big(\frac{\text{FLOPs}}{\text{FLOPs/s}}, \frac{\text{bytes}}{\text{bytes/s}}\Big)

    Attributes:
        name: of the device.
        flops: dtype name -> floating-point operations a second, one multiply-add being two.
        bandwidth: bytes a second between memory and processor.
        launch: seconds that one more kernel takes at least.

    Raises:
        TokenOpsError: a rate that is no positive finite number, a negative launch, no dtype at all.

    >>> Device("mine", {"float32": 1e12}, bandwidth=1e11).seconds(flops=10**12, bytes=10**10, dtype="float32")
    1.0
    >>> Device("mine", {"float32": 1e12}, bandwidth=1e11).rate("float32")
    1000000000000.0
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    launch: float = 0.0

    def __post_init__(self) -> None:
        rates = {**self.flops, "bandwidth": self.bandwidth}
        wrong = {name: rate for name, rate in rates.items() if not _positive(rate)}
        if wrong or not self.flops:
            raise TokenOpsError("Device", "positive finite rates for at least one dtype", wrong or "no dtype")
        if not (self.launch == 0 or _positive(self.launch)):
            raise TokenOpsError("Device", "launch in seconds, >= 0", self.launch)

    def rate(self, dtype: str) -> float:
        """Operations a second in a dtype.

        Raises:
            TokenOpsError: no rate for it.
        """
        if dtype not in self.flops:
            raise TokenOpsError("Device", f"a dtype of {self.name}: {', '.join(self.flops)}", dtype)
        return self.flops[dtype]

    def seconds(self, *, flops: int, bytes: int, dtype: str) -> float:
        """The roofline: the longer of computing and of moving.

        Raises:
            TokenOpsError: no rate for the dtype.
        """
        return max(flops / self.rate(dtype), bytes / self.bandwidth)


def _positive(rate: object) -> bool:
    return isinstance(rate, Real) and not isinstance(rate, bool) and 0 < float(rate) < math.inf


def _half(rate: float, float32: float) -> dict[str, float]:
    return {"bfloat16": rate, "float16": rate, "float32": float32}


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # bfloat16 and bandwidth measured; the others are the makers' dense figures, which no kernel reaches
        Device("h200", _half(790e12, 67e12), 4.3e12, launch=5e-6),
        Device("h100", _half(989e12, 67e12), 3.35e12, launch=5e-6),
        Device("a100", _half(312e12, 19.5e12), 2.04e12, launch=5e-6),
        Device("rtx4090", _half(165e12, 82.6e12), 1.01e12, launch=5e-6),
    )
}
"""Known devices. float32 is without TF32. A launch is what an eager kernel takes from Python at best."""


def find_device(device: str | Device, who: str = "cost") -> Device:
    """A device by its name (``"cpu"`` measures the machine it runs on), or the one given.

    Raises:
        TokenOpsError: an unknown name, or something else.

    >>> find_device("h200").bandwidth
    4300000000000.0
    """
    if isinstance(device, Device):
        return device
    if device == "cpu":
        return device_here()
    if not isinstance(device, str) or device not in DEVICES:
        raise TokenOpsError(who, f"a Device or one of {', '.join(DEVICES)}, cpu", repr(device))
    return DEVICES[device]


def device_here() -> Device:
    """This machine's processor, estimated: small matrix products and a copy, the best of many short runs.

    That takes about a second, and is remembered for the number of threads torch has. Other sizes can reach
    higher rates, and other programs lower them while they are taken: limits on ``cpu`` are estimates.

    >>> device_here().name
    'cpu'
    """
    return _estimated(torch.get_num_threads())


@cache
def _estimated(threads: int) -> Device:
    """With the number of threads that torch has now."""
    small = torch.zeros(1)
    launch = _best(lambda: small.add_(1), 500)
    source = torch.ones(1 << 24)  # larger than caches
    target = torch.empty_like(source)
    copying = _best(lambda: target.copy_(source), 10)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
        seconds = _best(lambda a=a, b=b: torch.mm(a, b), 20)
        rates[str(dtype).removeprefix("torch.")] = 2 * 256 * 1024 * 512 / seconds
    return Device("cpu", rates, 2 * source.nbytes / copying, launch)


def _best(call: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest run after one that warms up."""
    call()
    best = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
