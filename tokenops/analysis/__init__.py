"""Knowing what a pipeline does: cost counted and measured, pictures of kept tokens, a report as a page."""

from __future__ import annotations

from tokenops.analysis.cost import (
    DEVICES,
    Cost,
    Device,
    Op,
    Part,
    Site,
    Speedup,
    break_even,
    cost,
    counts,
    device_here,
)
from tokenops.analysis.measure import Measurement, measure
from tokenops.analysis.pictures import Panel, draw_panels, highlight, kept_mask
from tokenops.analysis.report import Report, report

__all__ = [
    "DEVICES",
    "Cost",
    "Device",
    "Measurement",
    "Op",
    "Panel",
    "Part",
    "Report",
    "Site",
    "Speedup",
    "break_even",
    "cost",
    "counts",
    "device_here",
    "draw_panels",
    "highlight",
    "kept_mask",
    "measure",
    "report",
]
