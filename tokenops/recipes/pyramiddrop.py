"""PyramidDrop: fewer visual tokens at every stage of the language model."""

from __future__ import annotations

from collections.abc import Sequence

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.routers import Route, pyramid
from tokenops.selectors.scorers import next_attention


def _sample() -> Pipeline:
    return pyramiddrop((0.5, 0.25), layers=(1, 2))


@register("recipe", paper="arXiv:2410.17247", sample=_sample)
def pyramiddrop(
    keep: Sequence[Keep] = (0.5, 0.25, 0.125), *, layers: Sequence[int] = (8, 16, 24)
) -> Pipeline:
    """At each of ``layers`` tokens leave for good until ``keep`` of each image's are left.

    Args:
        keep: at each stage, ratios or counts of the tokens that entered the language model; not growing.
        layers: where the stages begin; 8, 16 and 24 suit 32 layers.

    The choice reads the text of the whole call: where answers are in the sequence (a loss, teacher forcing,
    ``use_cache=False``) they take part, so logits differ from those of ``generate``, which sees the prompt.

    Raises:
        TokenOpsError: as many keeps as layers are needed, layers that ascend, keeps that do not grow.

    >>> pyramiddrop((0.5, 0.25), layers=(1, 2)).stages["layers"]
    Route(next_attention, keep=Steps(starts=(1, 2), keeps=(0.5, 0.25), depth=None), fate='exit')

    Reference: PyramidDrop (arXiv:2410.17247) §3.2: ranked by the last instruction token's attention with the
    projections of the layer where the stage begins. Deviations: original positions are kept, the released
    code numbers them anew; the budget is per image.
    """
    return Pipeline(layers=Route(next_attention, pyramid(layers, keep), fate="exit"))
