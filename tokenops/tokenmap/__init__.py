"""The values that carry a reduction: decide once, apply to anything that runs along the token axis."""

from tokenops.tokenmap.assignment import Assignment
from tokenops.tokenmap.selection import Selection

__all__ = ["Assignment", "Selection"]
