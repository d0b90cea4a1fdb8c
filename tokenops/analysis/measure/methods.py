"""Recipes by name, made to fit a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tokenops import recipes
from tokenops.budget import Keep, check_keep
from tokenops.errors import TokenOpsError
from tokenops.integrations import low_rank_factors
from tokenops.integrations.families import Parts, find_parts
from tokenops.pipeline import Pipeline
from tokenops.selectors.scorers import LearnedScorer

RANK = 256
"""Of ALVTS' factors, at most an eighth of the width; the paper's choice for 7 B parameters."""


def method(model: nn.Module, name: str, keep: Keep) -> Pipeline:
    """The recipe of that name with what it needs of the model; nothing is trained, which costs the same.

    VisionSelector gets a scorer with random weights, ALVTS factors from a singular value decomposition
    without calibration, PyramidDrop stages at a quarter, half and three quarters of the depth, each with the
    ratio ``keep`` of the one before. VisionZip reads CLS attention where there is a CLS token.

    Raises:
        TokenOpsError: an unknown name, a bad keep.

    >>> from tokenops import pocket
    >>> method(pocket.load()[0], "pyramiddrop", 0.5).stages["layers"].keep
    Steps(starts=(1, 2, 3), keeps=(0.5, 0.25, 0.125), depth=None)
    """
    if name not in recipes.list_recipes():
        raise TokenOpsError("method", f"a recipe among {', '.join(recipes.list_recipes())}", repr(name))
    keep = check_keep(keep, who=name)
    made = _MADE.get(name)
    if made is None:
        return recipes.create(name, keep=keep).eval()
    parts = find_parts(model)
    return made(parts, keep).to(next(parts.model.parameters()).device).eval()


def _visionselector(parts: Parts, keep: Keep) -> Pipeline:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        scorer = LearnedScorer(_width(parts))
    return recipes.visionselector(scorer, keep)


def _width(parts: Parts) -> int:
    return parts.language_model.get_input_embeddings().embedding_dim


def _alvts(parts: Parts, keep: Keep) -> Pipeline:
    rank = min(RANK, max(1, _width(parts) // 8))
    factors = low_rank_factors(parts.model, rank, family=parts.family)
    return recipes.alvts(factors.requires_grad_(False), keep)


def _pyramiddrop(parts: Parts, keep: Keep) -> Pipeline:
    if isinstance(keep, int):
        raise TokenOpsError("pyramiddrop", "keep as a ratio from stage to stage", keep)
    depth = len(parts.layers)
    layers = sorted({max(1, depth * i // 4) for i in (1, 2, 3)} - {depth})
    if not layers:
        raise TokenOpsError("pyramiddrop", "a language model of at least two layers", depth)
    return recipes.pyramiddrop([keep ** (i + 1) for i in range(len(layers))], layers=layers)


def _visionzip(parts: Parts, keep: Keep) -> Pipeline:
    tower = parts.family.towers.get(parts.base.config.vision_config.model_type)
    return recipes.visionzip(keep, cls=tower is not None and tower.cls)


_MADE: dict[str, Callable[[Parts, Keep], Pipeline]] = {
    "alvts": _alvts,
    "pyramiddrop": _pyramiddrop,
    "visionselector": _visionselector,
    "visionzip": _visionzip,
}
