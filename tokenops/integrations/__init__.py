"""Model sides. Everything that needs transformers is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import FAMILIES, Family
from tokenops.integrations.trace import Trace

if TYPE_CHECKING:
    from tokenops.integrations.attaching import Handle, attach, attached
    from tokenops.integrations.low_rank import low_rank_factors

__all__ = ["FAMILIES", "Family", "Handle", "Trace", "attach", "attached", "low_rank_factors"]


def __getattr__(name: str) -> Any:
    if name == "low_rank_factors":
        from tokenops.integrations.low_rank import low_rank_factors

        return low_rank_factors
    if name not in ("Handle", "attach", "attached"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tokenops.integrations import attaching as module
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise TokenOpsError("attach", "transformers: pip install 'tokenops[hf]'", "not installed") from error
    return getattr(module, name)
