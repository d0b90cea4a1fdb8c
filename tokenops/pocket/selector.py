"""The VisionSelector scorer trained on the pocket VLM, as a pipeline."""

from __future__ import annotations

from pathlib import Path

from tokenops.budget import Keep
from tokenops.pipeline import Pipeline
from tokenops.recipes import visionselector as recipe
from tokenops.selectors import TopK
from tokenops.stages import Prune


def scorer_dir() -> Path:
    """The folder with the trained pipeline, as :func:`tokenops.load` reads it."""
    return Path(__file__).parent / "scorer"


def visionselector(keep: Keep = 0.2) -> Pipeline:
    """VisionSelector for the pocket VLM: its trained scorer with any budget (it was trained at 0.2).

    Raises:
        TokenOpsError: bad keep, or the optional libraries that read checkpoints are missing.

    >>> visionselector(keep=0.1)
    Pipeline(after_projector=Prune(TopK(LearnedScorer(...), keep=0.1), scope='image', gate='attention'))
    """
    from tokenops.integrations.checkpoints import load

    stage = load(scorer_dir()).stages["after_projector"]
    assert isinstance(stage, Prune)
    assert isinstance(stage.selector, TopK)
    return recipe(stage.selector.scorer, keep, scope=stage.scope, gate=stage.gate)
