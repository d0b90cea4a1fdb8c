"""Routers: two streams of tokens around one layer, ``split`` before it and ``merge`` after it."""

from tokenops.routers.low_rank import LowRankAttention, attention_scores
from tokenops.routers.route import Route
from tokenops.routers.schedules import (
    Schedule,
    Steps,
    allocate,
    constant,
    from_layer,
    mass_curve,
    per_layer,
    pyramid,
)
from tokenops.routers.units import Units

__all__ = [
    "LowRankAttention",
    "Route",
    "Schedule",
    "Steps",
    "Units",
    "allocate",
    "attention_scores",
    "constant",
    "from_layer",
    "mass_curve",
    "per_layer",
    "pyramid",
]
