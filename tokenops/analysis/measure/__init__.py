"""Measuring pipelines on this machine: interleaved, paired, beside the limit of the cost model."""

from __future__ import annotations

from tokenops.analysis.measure.measuring import measure, steps
from tokenops.analysis.measure.result import FULL, Limit, Measurement, Row
from tokenops.analysis.measure.statistics import Ratio, Spread

__all__ = ["FULL", "Limit", "Measurement", "Ratio", "Row", "Spread", "measure", "steps"]
