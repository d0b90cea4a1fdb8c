"""VisionSelector: a learned scorer keeps the top tokens between the projector and the language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer
from tokenops.stages import Prune


def _sample() -> Pipeline:
    return visionselector(LearnedScorer(8))


@register("recipe", paper="arXiv:2510.16598", sample=_sample)
def visionselector(
    scorer: Callable[..., Any],
    keep: Keep = 0.2,
    *,
    relax: Callable[..., Any] | None = None,
    scope: str = "image",
    gate: str = "attention",
) -> Pipeline:
    """Keep the highest-scoring ``keep`` of each image's tokens; train the scorer through ``relax``.

    Args:
        scorer: usually a :class:`~tokenops.selectors.scorers.LearnedScorer` of the language model's width.
        keep: ratio in (0, 1] or count.
        relax: soft Top-K of training, ``soft_topk`` in the paper; None always selects hard.
        scope: ``"image"`` or ``"sample"``, see :class:`~tokenops.stages.Prune`.
        gate: ``"attention"`` or ``"multiply"``, see :class:`~tokenops.stages.Prune`.

    Raises:
        TokenOpsError: bad keep, scope or gate.

    >>> visionselector(LearnedScorer(64), keep=0.2).stages["after_projector"]
    Prune(TopK(LearnedScorer(64, hidden=32), keep=0.2), scope='image', gate='attention')

    Reference: VisionSelector (arXiv:2510.16598) §3. Deviations: the budget is per image (the released code:
    per sequence, ``scope="sample"``) and the soft mask gates attention (the paper: ``gate="multiply"``).
    """
    return Pipeline(after_projector=Prune(TopK(scorer, keep, relax), scope=scope, gate=gate))
