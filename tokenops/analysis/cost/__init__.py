"""The cost of a prefill from a model's config alone, and what a pipeline saves of it."""

from tokenops.analysis.cost.components import Site, counts
from tokenops.analysis.cost.devices import DEVICES, Device, device_here
from tokenops.analysis.cost.estimate import break_even, cost
from tokenops.analysis.cost.result import Cost, Speedup
from tokenops.analysis.cost.work import Op, Part

__all__ = [
    "DEVICES",
    "Cost",
    "Device",
    "Op",
    "Part",
    "Site",
    "Speedup",
    "break_even",
    "cost",
    "counts",
    "device_here",
]
