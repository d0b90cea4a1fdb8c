"""CLS attention: keep what the vision tower's summary token looks at."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import TopK
from tokenops.selectors.scorers import cls_attention as attention
from tokenops.stages import Prune


def _sample() -> Pipeline:
    return cls_attention(0.5)


@register("recipe", paper="arXiv:2412.01818", sample=_sample)
def cls_attention(keep: Keep) -> Pipeline:
    """Keep the ``keep`` of each image's tokens that the CLS token attends to most.

    Raises:
        TokenOpsError: bad keep.

    >>> cls_attention(0.2)
    Pipeline(after_projector=Prune(TopK(cls_attention, keep=0.2), scope='image', gate='attention'))

    Reference: FasterVLM (arXiv:2412.01818) §3.2; the choice is made after the projector, which
    keeps the order of the tokens.
    """
    return Pipeline(after_projector=Prune(TopK(attention, keep)))
