"""What ends with a Trainable, and which labels it takes."""

from __future__ import annotations

import pytest
import torch
from integrations import tiny

from tokenops import TokenOpsError
from tokenops.integrations import attached
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training import Trainable


def make(model: torch.nn.Module) -> Trainable:
    return Trainable(model, visionselector(LearnedScorer(48), keep=0.3, relax=soft_topk))


def test_remove_detaches_and_thaws_what_was_thawed() -> None:
    model = tiny.llava()
    model.lm_head.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    trainable = make(model)
    assert not any(p.requires_grad for p in model.parameters())
    trainable.remove()
    assert attached(model) is None
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_labels_at_visual_placeholders_are_refused(family: str) -> None:
    inputs = tiny.sample(family, [0], 1)
    trainable = make(tiny.MODELS[family]())
    assert not trainable.training
    trainable.train()
    with pytest.raises(TokenOpsError, match="labels of -100 at image placeholders"):
        trainable(**inputs, labels=inputs["input_ids"].clone())
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    assert trainable(**inputs, labels=labels)["loss"].isfinite()
