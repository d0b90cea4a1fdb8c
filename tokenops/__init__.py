"""tokenops: exact, composable visual-token reduction for vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.registry import register, registered
from tokenops.stages import Prune
from tokenops.tokenmap import Assignment, Selection

if TYPE_CHECKING:
    from tokenops.integrations import attach

__version__ = "0.1.0"

# names that need an optional library, and the packages that give them on first use
_LAZY = {"attach": "tokenops.integrations"}

__all__ = [
    "Assignment",
    "Pipeline",
    "Prune",
    "Selection",
    "TokenOpsError",
    "__version__",
    "attach",
    "register",
    "registered",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
