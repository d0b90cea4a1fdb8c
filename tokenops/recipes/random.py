"""Random: the baseline that is surprisingly hard to beat."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import Random
from tokenops.stages import Prune


@register("recipe", sample=lambda: random(0.5))
def random(keep: Keep, seed: int | None = 0) -> Pipeline:
    """Keep ``keep`` of each image's tokens by chance, the same ones on every run; ``seed=None`` draws anew.

    Raises:
        TokenOpsError: bad keep.

    >>> random(0.2)
    Pipeline(after_projector=Prune(TopK(RandomScore(seed=0), keep=0.2), scope='image', gate='attention'))
    """
    return Pipeline(after_projector=Prune(Random(keep, seed)))
