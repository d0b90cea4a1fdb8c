"""Pipelines: places, joining, printing, parameters; and the recipes by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tokenops import Merge, Pipeline, Prune, TokenOpsError
from tokenops.recipes import create, list_recipes, random, visionselector
from tokenops.routers import LowRankAttention, Route, Steps
from tokenops.selectors import Diverse, Random, TopK, UniformGrid
from tokenops.selectors.mergers import Contextual
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import (
    LearnedScorer,
    RandomScore,
    cls_attention,
    feature_norm,
    last_attention,
    next_attention,
)
from tokenops.signals import needs, supply

NAMES = {
    "Pipeline": Pipeline,
    "Prune": Prune,
    "Merge": Merge,
    "Diverse": Diverse,
    "Contextual": Contextual,
    "TopK": TopK,
    "UniformGrid": UniformGrid,
    "LearnedScorer": LearnedScorer,
    "RandomScore": RandomScore,
    "feature_norm": feature_norm,
    "cls_attention": cls_attention,
    "soft_topk": soft_topk,
    "Route": Route,
    "Steps": Steps,
    "LowRankAttention": LowRankAttention,
    "last_attention": last_attention,
    "next_attention": next_attention,
}


def test_stages_by_place() -> None:
    stage = Prune(Random(0.2))
    pipeline = Pipeline(after_projector=stage)
    assert pipeline.stages == {"after_projector": stage}
    assert list(pipeline) == ["after_projector"]


def test_joining() -> None:
    pipeline = random(0.2)
    assert repr(pipeline | Pipeline()) == repr(Pipeline() | pipeline) == repr(pipeline)
    with pytest.raises(TokenOpsError, match="one stage at a place"):
        pipeline | random(0.3)
    with pytest.raises(TypeError):
        pipeline | 3  # type: ignore[operator]


@pytest.mark.parametrize("stage", [None, 3, feature_norm])
def test_bad_stages(stage: object) -> None:
    with pytest.raises(TokenOpsError, match=r"an nn\.Module"):
        Pipeline(after_projector=stage)  # type: ignore[arg-type]


def test_bad_places_and_options() -> None:
    with pytest.raises(TokenOpsError, match="a place among"):
        Pipeline(nowhere=nn.Identity())
    with pytest.raises(TokenOpsError, match="scope among"):
        Prune(Random(0.2), scope="batch")
    with pytest.raises(TokenOpsError, match="gate among"):
        Prune(Random(0.2), gate="maybe")
    with pytest.raises(TokenOpsError, match="callable selector"):
        Prune(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_recipes())
def test_prints_as_the_code_that_builds_it(name: str) -> None:
    more: dict[str, Any] = {
        "visionselector": {"scorer": LearnedScorer(64), "relax": soft_topk},
        "alvts": {"factors": {0: LowRankAttention(8, 2, heads=2)}},
        "pyramiddrop": {"keep": (0.5, 0.25), "layers": (1, 2)},
    }
    pipeline = create(name, **{"keep": 0.25} | more.get(name, {}))
    assert "0.25" in repr(pipeline)
    assert repr(eval(repr(pipeline), NAMES)) == repr(pipeline)


def test_state_is_the_scorers() -> None:
    pipeline = visionselector(LearnedScorer(8))
    assert all(name.startswith("after_projector.selector.scorer.") for name in pipeline.state_dict())
    assert sum(p.numel() for p in pipeline.parameters()) == 2 * (8 * 4 + 4)
    assert random(0.2).state_dict() == {}


def test_create_refuses() -> None:
    assert list_recipes() == sorted(list_recipes())
    with pytest.raises(TokenOpsError, match="a recipe among alvts, cls_attention, "):
        create("visionselecter")
    with pytest.raises(TokenOpsError, match=r"arguments of random\(keep, seed\)"):
        create("random", kep=0.2)
    with pytest.raises(TokenOpsError, match="missing"):
        create("uniform")
    with pytest.raises(TokenOpsError, match="keep must be"):
        create("uniform", keep=2.0)


def test_needs_and_supply() -> None:
    stage = Prune(TopK(cls_attention, 0.5))
    assert needs(stage) == {"cls_attention": True}
    assert needs(LearnedScorer(8)) == {"mask": False, "segments": False}
    mask = torch.ones(1, 2, dtype=torch.bool)
    given = supply(LearnedScorer(8), {"mask": mask, "grid": mask, "segments": None})
    assert given == {"mask": mask}
    with pytest.raises(TokenOpsError, match="signal cls_attention"):
        supply(stage, {"mask": mask})
