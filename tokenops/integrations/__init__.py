"""Model sides. Everything that needs transformers is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenops.integrations.families import FAMILIES, Family
from tokenops.integrations.trace import Trace

if TYPE_CHECKING:
    from tokenops.integrations.attaching import Handle
    from tokenops.integrations.attention import register_attention
    from tokenops.integrations.entry import attach, attached
    from tokenops.integrations.low_rank import low_rank_factors

__all__ = [
    "FAMILIES",
    "Family",
    "Handle",
    "Trace",
    "attach",
    "attached",
    "low_rank_factors",
    "register_attention",
]


def __getattr__(name: str) -> Any:
    if name == "low_rank_factors":
        from tokenops.integrations.low_rank import low_rank_factors

        return low_rank_factors
    if name == "register_attention":
        from tokenops.integrations.attention import register_attention

        return register_attention
    if name not in ("Handle", "attach", "attached"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenops.integrations import entry

    return getattr(entry.transformers_side() if name == "Handle" else entry, name)
