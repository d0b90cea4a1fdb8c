"""``handle.trace`` and ``handle.tokens_per_layer``: what ran where, against the reference."""

from __future__ import annotations

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import families, fates, sides

import tokenops
from tokenops import Pipeline


@fates
@sides
@families
def test_entries_for_every_routed_layer_and_image(family: str, side: str, fate: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family, side)
    keeps = (0.6, None, 0.3)
    want = routed.expected(model, inputs, keeps, fate)
    call = ref.language_arguments(model, inputs)
    units = routed.unit_lines(model, call, inputs["input_ids"])
    with torch.no_grad(), tokenops.attach(model, routed.routed(keeps, fate)) as handle:
        assert handle.trace == ()
        assert handle.tokens_per_layer == ()
        model(**inputs)
        model(**tiny.sample(family, [], 3))  # text alone changes nothing
    layers = (0, 1, 2) if fate == "exit" else (0, 2)
    assert [(t.layer, t.image) for t in handle.trace] == [(i, j) for i in layers for j in range(len(units))]
    patches = [(row, [p for line, _ in lines for p in line]) for row, lines in units]
    with torch.no_grad(), tokenops.attach(model, ref.prune_by(lambda x, mask: mask)) as every:
        model(**inputs)
    for t in handle.trace:
        row, at = patches[t.image]
        stays = [p for p in at if want.runs[t.layer or 0][row, p]]
        there = at if fate == "skip" or not t.layer else [p for p in at if want.runs[t.layer - 1][row, p]]
        assert (t.stage, t.sample, t.n, t.positions.tolist()) == ("layers", row, len(there), stays)
        whole = every.trace[t.image]
        slots = [at.index(p) for p in stays]
        assert t.index.tolist() == whole.index[slots].tolist()
        assert t.candidates.tolist() == whole.index[[at.index(p) for p in there]].tolist()
        assert t.grid.tolist() == whole.grid[slots].tolist()
        assert t.mass.tolist() == [1.0] * t.k
        assert (t.kind, t.nan_scores) == (whole.kind, 0)
        if t.layer == 1:
            assert t.scores is None
        else:
            assert t.scores is not None
            assert t.scores.shape == (t.n,)
            assert set(t.candidates[t.scores.topk(t.k).indices].tolist()) == set(t.index.tolist())
    ran = [[int(r[row, at].sum()) for row, at in patches] for r in want.runs]
    assert handle.tokens_per_layer == pytest.approx([sum(c) / len(c) for c in ran])


@families
def test_a_hybrid_counts_what_entered(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.5) | routed.routed((None, 0.5, 0.25))) as handle:
        model(**inputs)
    before = [t for t in handle.trace if t.layer is None]
    assert [t.stage for t in before] == ["after_projector"] * 6
    assert [t.stage for t in handle.trace[6:]] == ["layers"] * 12
    for t in handle.trace[6:]:
        first = before[t.image]
        assert torch.equal(t.candidates, first.index)
        assert t.k == max(1, int((0.5, 0.25)[(t.layer or 1) - 1] * first.k + 1e-6))
        assert set(t.index.tolist()) <= set(first.index.tolist())
        assert t.scores is not None
        assert t.kept_scores is not None
        assert t.kept_scores.min() == t.scores.sort(descending=True).values[t.k - 1]
        assert set(t.positions.tolist()) <= set(first.positions.tolist())
        assert set(map(tuple, t.grid.tolist())) <= set(map(tuple, first.grid.tolist()))
    means = [sum(t.k for t in handle.trace if t.layer == layer) / 6 for layer in (None, 1, 2)]
    assert handle.tokens_per_layer == pytest.approx(means)


@families
def test_tokens_per_layer_without_a_route(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with torch.no_grad():
        with tokenops.attach(model, ref.prune(0.3)) as handle:
            model(**inputs)
            kept = sum(t.k for t in handle.trace) / 6
            assert handle.tokens_per_layer == pytest.approx([kept] * 3)
            whole = sum(t.n for t in handle.trace) / 6
        for pipeline in (Pipeline(), routed.routed(1.0), ref.prune(1.0)):
            with tokenops.attach(model, pipeline) as handle:
                model(**inputs)
                assert handle.tokens_per_layer == pytest.approx([whole] * 3)


@families
def test_generate_reports_its_prefill(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with tokenops.attach(model, routed.routed(0.3)) as handle:
        with torch.no_grad():
            model(**inputs)
        want = [(t.layer, t.image, t.index.tolist()) for t in handle.trace]
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert [(t.layer, t.image, t.index.tolist()) for t in handle.trace] == want
