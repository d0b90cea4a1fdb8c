"""Pruning or merging before the language model, routing inside it."""

from __future__ import annotations

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.merging import merging
from integrations.routed import backends, families, fates, sides

import tokenops
from tokenops import Pipeline

KEEPS = (0.8, None, 0.4)


@fates
@sides
@backends
@families
def test_prune_then_route(family: str, backend: str, side: str, fate: str) -> None:
    model, inputs = ref.model(family, backend), routed.batch_of(family, side)
    entered = ref.expected_keep(model, inputs, 0.5)
    want = routed.expected(model, inputs, KEEPS, fate, entered=entered)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.5) | routed.routed(KEEPS, fate)):
        got = model(**inputs).logits
    ref.close(ref.real(inputs, got), ref.real(inputs, filled(want.logits, entered, fate)))


def filled(logits: torch.Tensor, entered: torch.Tensor, fate: str) -> torch.Tensor:
    """What was pruned has the state of the one before it; what exits later, the reference has filled."""
    return routed.filled(logits, entered) if fate == "skip" else logits


@pytest.mark.parametrize("scope", ["image", "sample"])
@pytest.mark.parametrize("how", ["nearest", "bipartite"])
@fates
@families
def test_merge_then_route(family: str, how: str, fate: str, scope: str) -> None:
    """The reference gets the merged features that pruning and merging alone hand to the language model."""
    from tokenops.integrations.visual import Decision

    model, inputs = ref.model(family), routed.batch_of(family)
    call = ref.language_arguments(model, inputs)
    with torch.no_grad():
        units = routed.unit_lines(model, call, inputs["input_ids"])
        torch.manual_seed(3)
        with tokenops.attach(model, merging(family, how, 0.5, scope)) as handle:
            model(**inputs)
            decision: Decision | None = handle.decision
        assert decision is not None
        entered = decision.over_sequence.mask
        merged = call | {"inputs_embeds": decision.embeds}
        want = routed.dense(model, merged, units, entered, KEEPS, fate)
        torch.manual_seed(3)
        with tokenops.attach(model, merging(family, how, 0.5, scope) | routed.routed(KEEPS, fate)) as handle:
            got = model(**inputs).logits
    ref.close(ref.real(inputs, got), ref.real(inputs, filled(want.logits, entered, fate)))
    stands = {t.image: t.mass.sum() for t in handle.trace if t.layer is None}
    assert all(float(t.mass.sum()) <= float(stands[t.image]) for t in handle.trace)


@families
def test_a_pruned_batch_is_its_rows(family: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples, "right")
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.6) | routed.routed(KEEPS)):
        together = model(**inputs).logits
        for row, sample in enumerate(samples):
            own = together[row][inputs["attention_mask"][row].bool()]
            ref.close(own, model(**sample).logits[0], 2e-5)


@families
def test_an_image_that_lost_everything(family: str) -> None:
    """Pruned to nothing, routed among nothing."""
    model, inputs = ref.model(family), routed.batch_of(family)
    nothing = ref.prune_by(lambda x, mask: torch.zeros_like(mask))
    with torch.no_grad():
        with tokenops.attach(model, nothing):
            want = model(**inputs).logits
        with tokenops.attach(model, Pipeline(**nothing.stages) | routed.routed(0.5)) as handle:
            assert torch.equal(model(**inputs).logits, want)
            assert handle.tokens_per_layer == (0.0, 0.0, 0.0)
            assert all(t.k == 0 for t in handle.trace)


@families
def test_one_image_keeps_nothing_and_another_some(family: str) -> None:
    """The last image of the call loses everything: units and images still match."""
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    sizes: list[int] = []

    def first(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(x.shape[0])
        keep = torch.zeros_like(mask)
        keep[0] = True
        return keep

    with torch.no_grad(), tokenops.attach(model, ref.prune_by(first) | routed.routed(0.5)) as handle:
        assert torch.isfinite(model(**inputs).logits).all()
    assert [t.k for t in handle.trace if t.layer == 0] == [handle.trace[0].n // 2, 0]
    assert handle.tokens_per_layer == (handle.trace[0].n // 2 / 2,) * 3
