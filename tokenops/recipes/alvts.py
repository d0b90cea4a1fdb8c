"""ALVTS: before every layer a low-rank guess of its attention says which visual tokens run in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.routers import LowRankAttention, Route
from tokenops.routers.schedules import Schedule


def _sample() -> Pipeline:
    return alvts({0: LowRankAttention(8, 2, heads=2)})


@register("recipe", paper="arXiv:2606.14277", sample=_sample)
def alvts(factors: Mapping[Any, Any] | nn.ModuleDict, keep: Keep | Schedule = 1 / 9) -> Pipeline:
    """In every layer the visual tokens it would look at run; the others skip it and are back in the next.

    Args:
        factors: ``{layer: LowRankAttention}``, from :func:`tokenops.integrations.low_rank_factors` and,
            better, calibrated by :func:`tokenops.training.calibrate`.
        keep: of the visual tokens that enter the language model, in every layer; or a schedule
            ``layer -> keep`` such as :func:`tokenops.routers.allocate` makes.

    The choice reads the text of the whole call: where answers are in the sequence (a loss, teacher forcing,
    ``use_cache=False``) they take part, so logits differ from those of ``generate``, which sees the prompt.

    Raises:
        TokenOpsError: bad keep, factors that are no modules by layer.

    >>> alvts({0: LowRankAttention(8, 2, heads=2)}, keep=64).stages["layers"]
    Route({0: LowRankAttention(8, 2, heads=2, kv_heads=2, head_dim=4)}, keep=64, fate='skip')

    Reference: ALVTS (arXiv:2606.14277) §3: one ratio for all layers, 1/9 of 576 tokens in its main table.
    Deviations: a token that skips a layer leaves no keys and values there; scores come from a map without
    causal mask and from the mean of the heads' logits instead of their sum, see
    :func:`tokenops.integrations.low_rank_factors`.
    """
    return Pipeline(layers=Route(factors, keep))
