"""Feature norm: keep the tokens with the longest vectors."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import TopK
from tokenops.selectors.scorers import feature_norm as norm
from tokenops.stages import Prune


@register("recipe", sample=lambda: feature_norm(0.5))
def feature_norm(keep: Keep) -> Pipeline:
    """Keep the ``keep`` of each image's tokens with the largest L2 norm after the projector.

    Raises:
        TokenOpsError: bad keep.

    >>> feature_norm(0.2)
    Pipeline(after_projector=Prune(TopK(feature_norm, keep=0.2), scope='image', gate='attention'))
    """
    return Pipeline(after_projector=Prune(TopK(norm, keep)))
