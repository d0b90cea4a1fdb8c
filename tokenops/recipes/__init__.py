"""Published methods: short functions that return a :class:`~tokenops.pipeline.Pipeline`."""

from __future__ import annotations

import inspect
from typing import Any

from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.recipes.alvts import alvts
from tokenops.recipes.cls_attention import cls_attention
from tokenops.recipes.divprune import divprune
from tokenops.recipes.fastv import fastv
from tokenops.recipes.feature_norm import feature_norm
from tokenops.recipes.pyramiddrop import pyramiddrop
from tokenops.recipes.random import random
from tokenops.recipes.uniform import uniform
from tokenops.recipes.visionselector import visionselector
from tokenops.recipes.visionzip import visionzip
from tokenops.registry import registered

__all__ = [
    "alvts",
    "cls_attention",
    "create",
    "divprune",
    "fastv",
    "feature_norm",
    "list_recipes",
    "pyramiddrop",
    "random",
    "uniform",
    "visionselector",
    "visionzip",
]


def list_recipes() -> list[str]:
    """Names :func:`create` knows.

    >>> "visionselector" in list_recipes()
    True
    """
    return [entry.name for entry in registered("recipe")]


def create(name: str, **arguments: Any) -> Pipeline:
    """Call the recipe of that name: ``create("random", keep=0.2)`` is ``random(keep=0.2)``.

    Raises:
        TokenOpsError: an unknown name, or an argument the recipe does not take or misses.

    >>> create("uniform", keep=64)
    Pipeline(after_projector=Prune(UniformGrid(keep=64), scope='image', gate='attention'))
    """
    recipes = {entry.name: entry.component for entry in registered("recipe")}
    if name not in recipes:
        raise TokenOpsError("create", f"a recipe among {', '.join(sorted(recipes))}", repr(name))
    signature = inspect.signature(recipes[name])
    try:
        signature.bind(**arguments)
    except TypeError as wrong:
        taken = f"arguments of {name}({', '.join(signature.parameters)})"
        raise TokenOpsError("create", taken, f"{', '.join(arguments) or 'none'} ({wrong})") from None
    return recipes[name](**arguments)
