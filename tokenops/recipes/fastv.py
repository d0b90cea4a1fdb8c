"""FastV: from an early layer on, only the visual tokens that the last token looked at stay."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.routers import Route, from_layer
from tokenops.selectors.scorers import last_attention


def _sample() -> Pipeline:
    return fastv(0.5)


@register("recipe", paper="arXiv:2403.06764", sample=_sample)
def fastv(keep: Keep = 0.5, *, layer: int = 2) -> Pipeline:
    """Layers before ``layer`` see all tokens, it and all later ones the best ``keep`` of each image.

    Args:
        keep: ratio or count of each image's tokens.
        layer: the first layer without the others, at least 1; they are ranked by the attention of the last
            token in the layer before.

    The choice reads the text of the whole call: where answers are in the sequence (a loss, teacher forcing,
    ``use_cache=False``) they take part, so logits differ from those of ``generate``, which sees the prompt.

    Raises:
        TokenOpsError: bad keep or layer.

    >>> fastv(0.5).stages["layers"]
    Route(last_attention, keep=Steps(starts=(2,), keeps=(0.5,), depth=None), fate='exit')

    Reference: FastV (arXiv:2403.06764) §4. Deviations: the budget is per image and rounded down (the paper:
    of all visual tokens together, to the nearest); ranked on all heads' mean, as the released code does.
    """
    if layer == 0:
        raise TokenOpsError("fastv", "layer >= 1, which has one before it to rank the tokens", layer)
    return Pipeline(layers=Route(last_attention, from_layer(layer, keep), fate="exit"))
