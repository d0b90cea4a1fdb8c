"""The calibrated factors that ship with the pocket VLM."""

from __future__ import annotations

from typing import Any

import pytest

import tokenops
from tokenops import TokenOpsError, pocket
from tokenops.pocket.routing import alvts, layer_counts


@pytest.mark.parametrize("softmax", ["joint", "head"])
def test_factors_of_both_kinds_route_the_model(softmax: str) -> None:
    model, processor = pocket.load()
    pipeline = alvts(16, softmax=softmax)
    scorers: Any = pipeline.stages["layers"].scorer
    assert {scorer.softmax for scorer in scorers.values()} == {softmax}
    scenes = pocket.scenes(4, "train", seed=3)
    with tokenops.attach(model, pipeline) as handle:
        assert pocket.evaluate(model, processor, scenes).mean > 0.7
        assert set(handle.tokens_per_layer) == {16.0}


@pytest.mark.parametrize("softmax", ["both", None, ["head"]])
def test_an_unknown_softmax(softmax: Any) -> None:
    with pytest.raises(TokenOpsError, match="softmax among joint, head"):
        alvts(16, softmax=softmax)


def test_counts_of_the_layers_have_the_mean_they_are_named_by() -> None:
    for method in ("alvts", "hybrid"):
        for mean, counts in layer_counts(method).items():
            assert sum(counts) == 4 * mean, (method, mean)
