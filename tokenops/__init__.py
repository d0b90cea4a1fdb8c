"""tokenops: exact, composable visual-token reduction for vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenops.errors import TokenOpsError, TokenOpsWarning
from tokenops.pipeline import Pipeline
from tokenops.recipes import create, list_recipes
from tokenops.registry import register, registered, unregister
from tokenops.stages import Merge, Prune
from tokenops.tokenmap import Assignment, Selection

if TYPE_CHECKING:
    from tokenops.integrations import attach
    from tokenops.integrations.checkpoints import load, save

__version__ = "0.1.0"

# names that need an optional library, and the packages that give them on first use
_LAZY = {
    "attach": "tokenops.integrations",
    "load": "tokenops.integrations.checkpoints",
    "save": "tokenops.integrations.checkpoints",
}

__all__ = [
    "Assignment",
    "Merge",
    "Pipeline",
    "Prune",
    "Selection",
    "TokenOpsError",
    "TokenOpsWarning",
    "__version__",
    "attach",
    "create",
    "list_recipes",
    "load",
    "register",
    "registered",
    "save",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
