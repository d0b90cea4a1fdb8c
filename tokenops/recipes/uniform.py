"""Uniform: tokens spread evenly over the picture."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import UniformGrid
from tokenops.stages import Prune


@register("recipe", sample=lambda: uniform(0.5))
def uniform(keep: Keep) -> Pipeline:
    """Keep ``keep`` of each image's tokens, spread evenly over its frames, rows and columns.

    Raises:
        TokenOpsError: bad keep.

    >>> uniform(0.2)
    Pipeline(after_projector=Prune(UniformGrid(keep=0.2), scope='image', gate='attention'))
    """
    return Pipeline(after_projector=Prune(UniformGrid(keep)))
