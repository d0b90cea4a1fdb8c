"""Merging before the language model: merged features at their anchors, everything else gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from integrations.merging import every, families, merging
from torch import Tensor
from torch.nn.functional import cosine_similarity

import tokenops


def nearest(x: Tensor, kept: list[int], among: list[int], i: int) -> int:
    return max(among, key=lambda j: (float(cosine_similarity(x[i], x[j], dim=0)), -j))


def groups_by_hand(x: Tensor, keep: float, how: str) -> dict[int, list[int]]:
    """Anchor -> members, by plain loops over one image's features."""
    n = len(x)
    count = lambda ratio: max(1, int(ratio * n + 1e-6))  # noqa: E731
    kept = x.norm(dim=-1).topk(count(keep if how == "nearest" else 0.6 * keep)).indices.sort().values.tolist()
    rest = [i for i in range(n) if i not in kept]
    targets, groups = kept, {i: [i] for i in kept}
    if how == "contextual":
        extra = count(keep) - len(kept)
        targets = rest[:: len(rest) // extra][:extra] if extra else []
        groups |= {i: [i] for i in targets}
    for i in rest:
        if targets and i not in targets:
            groups[nearest(x, kept, targets, i)].append(i)
    return groups


def by_hand(
    model: Any, inputs: dict[str, Any], keep: float, how: str, scope: str
) -> tuple[dict[str, Any], Tensor]:
    """The language model's arguments with merged features at the anchors, and what stays."""
    call = dict(ref.language_arguments(model, inputs))
    embeds, stays = call["inputs_embeds"].clone(), inputs["attention_mask"].bool().clone()
    newline = getattr(model.model, "image_newline", None)
    found: list[tuple[int, list[Any]]] = [
        (row, ref.row_of_patches(embeds[row], at, newline)) for row, at in ref.units(inputs["input_ids"])
    ]
    if scope == "sample":
        found = [(row, [x for r, lines in found if r == row for x in lines]) for row in {r for r, _ in found}]
    for row, lines in found:
        patches = [p for line, _ in lines for p in line]
        groups = groups_by_hand(call["inputs_embeds"][row, patches], keep, how)
        stays[row, patches] = False
        for anchor, members in groups.items():
            stays[row, patches[anchor]] = True
            embeds[row, patches[anchor]] = call["inputs_embeds"][row, [patches[i] for i in members]].mean(0)
        for line, end in lines:
            if end is not None:
                stays[row, end] = bool(stays[row, line].any())
    return {**call, "inputs_embeds": embeds}, stays


@pytest.mark.parametrize("scope", ["image", "sample"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", ["nearest", "contextual"])
@families
def test_ragged_batches_equal_plain_loops(family: str, how: str, side: str, scope: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family), side)
    call, stays = by_hand(model, inputs, 0.4, how, scope)
    want = ref.dense(model, call, stays)
    with torch.no_grad(), tokenops.attach(model, merging(family, how, 0.4, scope)):
        got = model(**inputs).logits
    ref.close(ref.real(inputs, got), ref.real(inputs, want))
    pruned = ref.dense(model, ref.language_arguments(model, inputs), stays)
    assert (pruned - want).abs().max() > 1e-2


@pytest.mark.parametrize("backend", ref.BACKENDS)
@every
@families
def test_what_the_trace_says_equals_explicit_masks(family: str, how: str, backend: str) -> None:
    """Groups as the decision reports them, their means at the anchors, all else hidden by a mask."""
    model, inputs = ref.model(family, backend), tiny.batch(ref.prompts(family))
    call = dict(ref.language_arguments(model, inputs))
    with torch.no_grad(), tokenops.attach(model, merging(family, how)) as handle:
        got = model(**inputs).logits
    embeds, stays = call["inputs_embeds"].clone(), inputs["attention_mask"].bool().clone()
    newline = getattr(model.model, "image_newline", None)
    assert handle.decision is not None
    for i, (trace, (row, at)) in enumerate(zip(handle.trace, ref.units(inputs["input_ids"]), strict=True)):
        lines = ref.row_of_patches(embeds[row], at, newline)
        patches = torch.tensor([p for line, _ in lines for p in line])
        stays[row, patches] = False
        stays[row, trace.positions] = True
        for line, end in lines:
            if end is not None:
                stays[row, end] = bool(stays[row, line].any())
        if handle.decision.merged is None:
            assert trace.mass.tolist() == [1] * trace.k
            continue
        group = handle.decision.merged.group[i, : trace.n]
        members = [patches[group == g] for g in group[group >= 0].unique()]
        for own in members:
            (anchor,) = set(own.tolist()) & set(trace.positions.tolist())
            embeds[row, anchor] = call["inputs_embeds"][row, own].mean(0)
        assert trace.mass.sum() == sum(map(len, members))
    ref.close(
        ref.real(inputs, got), ref.real(inputs, ref.dense(model, {**call, "inputs_embeds": embeds}, stays))
    )


@every
@families
def test_the_budget_is_exact_and_the_mass_is_the_image(family: str, how: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad(), tokenops.attach(model, merging(family, how, 0.4)) as handle:
        model(**inputs)
    assert [t.k for t in handle.trace] == [max(1, int(0.4 * t.n + 1e-6)) for t in handle.trace]
    for t in handle.trace:
        # a small image may have no contextual token, so that its rest just leaves
        dominant = max(1, int(0.6 * 0.4 * t.n + 1e-6)) if how in ("visionzip", "contextual") else 0
        merges = how != "divprune" and t.k > dominant
        assert t.mass.shape == (t.k,)
        assert t.mass.sum() == (t.n if merges else t.k)
        assert (t.positions.diff() > 0).all()
    assert (max(float(t.mass.max()) for t in handle.trace) > 1) == (how != "divprune")


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@every
@families
def test_keeping_everything_is_the_same_bits(family: str, how: str, dtype: torch.dtype) -> None:
    model, inputs = ref.model(family, dtype=dtype), ref.to(tiny.batch(ref.prompts(family)), dtype)
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, merging(family, how, 1.0)) as handle:
            assert torch.equal(model(**inputs).logits, plain)
    assert all(t.k == t.n and t.mass.eq(1).all() for t in handle.trace)


@every
@families
def test_generate_equals_recomputing_everything(family: str, how: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    model.generation_config.eos_token_id = None
    run = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with tokenops.attach(model, merging(family, how)):
        tokens, logits = ref.continue_greedily(model, inputs, 4)
        out = model.generate(**inputs, **run)
    assert torch.equal(out.sequences[:, -4:], tokens)
    ref.close(torch.stack(out.logits, 1), logits, 2e-5)


@families
def test_beams_keep_what_one_row_keeps(family: str) -> None:
    model, samples = ref.model(family), [tiny.sample(family, [i], i, (3 + i, 2 + i)) for i in range(3)]
    with tokenops.attach(model, merging(family, "visionzip")) as handle:
        model.generate(**tiny.batch(samples), max_new_tokens=3, num_beams=2, do_sample=False)
        chosen = {t.sample: (t.index.tolist(), t.mass.tolist()) for t in handle.trace}
        for row, sample in enumerate(samples):
            with torch.no_grad():
                model(**sample)
            (trace,) = handle.trace
            alone = trace.index.tolist(), trace.mass.tolist()
            assert all(kept == alone for r, kept in chosen.items() if r * 3 // (max(chosen) + 1) == row)


@every
@families
def test_a_batch_is_its_rows_and_other_images_do_not_matter(family: str, how: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples)
    with torch.no_grad(), tokenops.attach(model, merging(family, how)) as handle:
        together = model(**inputs).logits
        chosen = [(t.sample, t.index.tolist(), t.mass.tolist()) for t in handle.trace]
        for row, sample in enumerate(samples):
            own = together[row][inputs["attention_mask"][row].bool()]
            ref.close(own, model(**sample).logits[0], 2e-5)
            if len(sample) > 3:
                alone = [(row, t.index.tolist(), t.mass.tolist()) for t in handle.trace]
                assert [c for c in chosen if c[0] == row] == alone
        kept = []
        for images in ([0], [0, 3, 1]):
            model(**tiny.sample(family, images, 7))
            kept.append((handle.trace[0].index.tolist(), handle.trace[0].mass.tolist()))
        assert kept[0] == kept[1]
