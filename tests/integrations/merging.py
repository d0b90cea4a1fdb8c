"""Pipelines of every kind that merges, for the tests of merging."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from integrations import reference as ref

from tokenops import Assignment, Merge, Pipeline, recipes
from tokenops.selectors import Random, TopK
from tokenops.selectors.mergers import Contextual, bipartite, nearest_kept
from tokenops.selectors.scorers import feature_norm

families = pytest.mark.parametrize("family", ref.FAMILIES)
every = pytest.mark.parametrize("how", ["visionzip", "divprune", "nearest", "contextual", "bipartite"])


def merging(family: str, how: str, keep: float = 0.3, scope: str = "image") -> Pipeline:
    """Pipelines of all kinds that leave ``keep``."""
    if how == "visionzip":
        return recipes.visionzip(keep, contextual=0.4, cls=family != "qwen2_5_vl")
    if how == "divprune":
        return recipes.divprune(keep)
    stages = {
        "nearest": lambda: Merge(TopK(feature_norm, keep), nearest_kept, scope=scope),
        "contextual": lambda: Merge(TopK(feature_norm, 0.6 * keep), by_features(keep), scope=scope),
        "bipartite": lambda: Merge(Random(keep), bipartite, scope=scope),
    }
    return Pipeline(after_projector=stages[how]())


def by_features(keep: float) -> Callable[..., Assignment]:
    """Contextual without the keys of the tower."""
    merger = Contextual(keep)
    return lambda x, selection, *, mask: merger(x, selection, mask=mask)
