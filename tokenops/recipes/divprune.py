"""DivPrune: keep tokens that are far from each other."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import Diverse
from tokenops.stages import Prune


def _sample() -> Pipeline:
    return divprune(0.5)


@register("recipe", paper="arXiv:2503.02175", sample=_sample)
def divprune(keep: Keep) -> Pipeline:
    """Keep ``keep`` of each image's tokens, chosen greedily for a large smallest cosine distance.

    Raises:
        TokenOpsError: bad keep.

    >>> divprune(0.2)
    Pipeline(after_projector=Prune(Diverse(keep=0.2), scope='image', gate='attention'))

    Reference: DivPrune (arXiv:2503.02175) §3.2. Deviations: the budget is rounded by this library's rule and
    is each image's own, also for the crops of one image together.
    """
    return Pipeline(after_projector=Prune(Diverse(keep)))
