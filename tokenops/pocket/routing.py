"""ALVTS on the pocket VLM: the calibrated low-rank factors that ship with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenops.budget import Keep
from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.recipes import alvts as recipe
from tokenops.routers.schedules import Schedule


def factors_dir() -> Path:
    """The folder with the calibrated factors, the layers' score mass and tokens per layer."""
    return Path(__file__).parent / "factors"


def alvts(keep: Keep | Schedule = 1 / 9, *, softmax: str = "joint") -> Pipeline:
    """ALVTS with factors calibrated on training scenes; ``keep`` as in :func:`tokenops.recipes.alvts`.

    ``softmax`` as in :class:`~tokenops.routers.LowRankAttention`: ``"head"`` is nearer to the model's own
    attention, with a map for each of the heads.

    Raises:
        TokenOpsError: an unknown softmax.

    >>> alvts(16).stages["layers"].keep
    16
    """
    folders = {"joint": factors_dir(), "head": factors_dir() / "head"}
    if not isinstance(softmax, str) or softmax not in folders:
        raise TokenOpsError("pocket.routing.alvts", f"softmax among {', '.join(folders)}", repr(softmax))
    from tokenops.integrations.checkpoints import load

    stage: Any = load(folders[softmax]).stages["layers"]
    return recipe(stage.scorer, keep)


def score_mass() -> list[list[float]]:
    """Share of each layer's attention score in its visual tokens, best first, for
    :func:`tokenops.routers.allocate`.

    >>> len(score_mass())
    4
    """
    return json.loads((factors_dir() / "mass.json").read_text())


def layer_counts(method: str = "alvts") -> dict[int, list[int]]:
    """Mean tokens per layer -> tokens of each layer, by :func:`tokenops.training.layer_gains`.

    ``"alvts"`` alone, or ``"hybrid"``, where VisionSelector passes on twice the mean.

    >>> counts = layer_counts()[16]
    >>> len(counts), sum(counts)
    (4, 64)
    """
    counts = json.loads((factors_dir() / "layers.json").read_text())[method]
    return {int(mean): per_layer for mean, per_layer in counts.items()}
