"""Looking at what a pipeline did: pictures of kept and dropped tokens."""

from __future__ import annotations

from tokenops.analysis.pictures import Panel, draw_panels, highlight, kept_mask

__all__ = ["Panel", "draw_panels", "highlight", "kept_mask"]
