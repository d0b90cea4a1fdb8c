"""Merge as a stage: gradients, files on disk, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from integrations.merging import every, families, merging
from torch import Tensor

import tokenops
from tokenops import Assignment, Merge, Pipeline, TokenOpsError, recipes
from tokenops.integrations.checkpoints import load, save
from tokenops.integrations.describe import build, describe
from tokenops.selectors import TopK
from tokenops.selectors.mergers import Contextual, nearest_kept
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer, feature_norm


@families
def test_gradients_reach_every_member_of_a_group(family: str) -> None:
    model, inputs = ref.model(family).train(), tiny.batch(ref.prompts(family))
    embeds: list[Tensor] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["inputs_embeds"].retain_grad()
        embeds.append(kwargs["inputs_embeds"])

    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    with tokenops.attach(model, merging(family, "nearest")) as handle:
        with_hook = model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
        model(**inputs, labels=labels).loss.backward()
        with_hook.remove()
    (seen,) = embeds
    assert seen.grad is not None
    assert handle.decision is not None
    assert handle.decision.merged is not None
    newline = getattr(model.model, "image_newline", None)
    for i, (trace, (row, at)) in enumerate(zip(handle.trace, ref.units(inputs["input_ids"]), strict=True)):
        patches = torch.tensor([p for line, _ in ref.row_of_patches(seen[row], at, newline) for p in line])
        own = seen.grad[row, patches]
        assert (own.norm(dim=-1) > 0).all()
        group = handle.decision.merged.group[i, : trace.n]
        for g in group.unique():  # an equal share of the group's gradient for each
            torch.testing.assert_close(own[group == g], own[group == g][:1].expand_as(own[group == g]))


def test_a_relaxation_cannot_train_a_merge() -> None:
    model, inputs = ref.model("llava"), tiny.sample("llava", [0], 1)
    soft = Pipeline(after_projector=Merge(TopK(LearnedScorer(48), 0.3, soft_topk), nearest_kept))
    with torch.no_grad(), tokenops.attach(model, soft):
        model(**inputs)
        model.train()
        with pytest.raises(TokenOpsError, match="Merge: a selector without a relaxation, got a soft mask"):
            model(**inputs)


@every
@families
def test_saved_and_loaded_it_computes_the_same(family: str, how: str, tmp_path: Path) -> None:
    if how == "contextual":
        pipeline = Pipeline(after_projector=Merge(TopK(feature_norm, 0.2), Contextual(9), scope="sample"))
    else:
        pipeline = merging(family, how)
    save(pipeline, tmp_path)
    back = load(tmp_path)
    assert repr(back) == repr(pipeline)
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    logits = []
    for each in (pipeline, back):
        with torch.no_grad(), tokenops.attach(model, each):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


def test_a_description_with_something_else_as_merger_is_refused() -> None:
    description = describe(Pipeline(after_projector=Merge(TopK(feature_norm, 0.2), nearest_kept)))
    stage = description["arguments"]["stages"]["dict"]["after_projector"]
    assert stage["arguments"]["merger"] == {"component": "merger/nearest_kept"}
    assert repr(build(description)) == (
        "Pipeline(after_projector=Merge(TopK(feature_norm, keep=0.2), nearest_kept, scope='image'))"
    )
    stage["arguments"]["merger"] = {"component": "scorer/feature_norm"}
    with pytest.raises(TokenOpsError, match=r"stage/Merge: a merger as merger, got feature_norm \(scorer\)"):
        build(description)


def test_bad_mergers() -> None:
    model, selector = ref.model("llava"), TopK(feature_norm, 0.5)
    plain = dict(vars(model.model))

    def needy(x: Tensor, selection: Any, *, segments: Tensor) -> Assignment:
        raise AssertionError("must not run")

    def short(x: Tensor, selection: Any, *, mask: Tensor) -> Assignment:
        return Assignment.joining(torch.zeros(1, 1, dtype=torch.long))

    cases: list[tuple[Any, str]] = [
        (needy, "signals among .*, got segments"),
        (short, r"short: to return an Assignment of \(1, 4\), got \(1, 1\)"),
        (lambda x, selection, *, mask: selection, "to return an Assignment, got Selection"),
    ]
    for merger, message in cases:
        with pytest.raises(TokenOpsError, match=message):
            tokenops.attach(model, Pipeline(after_projector=Merge(selector, merger)))
    for build_it, message in (
        (lambda: Merge(selector, 3), "Merge: a callable merger"),  # type: ignore[arg-type]
        (lambda: Merge(3, nearest_kept), "Merge: a callable selector"),  # type: ignore[arg-type]
        (lambda: Merge(selector, nearest_kept, scope="batch"), "Merge: scope among"),
        (lambda: recipes.visionzip(0.5, contextual=1.0), "visionzip: contextual as a share"),
        (lambda: recipes.visionzip(2.0), "visionzip: keep must be"),
    ):
        with pytest.raises(TokenOpsError, match=message):
            build_it()
    assert vars(model.model) == plain


def test_the_shares_of_the_paper() -> None:
    for keep, dominant in ((64, 54), (128, 108), (192, 162)):
        stage = recipes.visionzip(keep).stages["after_projector"]
        assert isinstance(stage, Merge)
        assert (stage.selector.keep, stage.merger.keep) == (dominant, keep)  # type: ignore[union-attr]
    assert recipes.visionzip(1 / 9).stages["after_projector"].needs() == {  # type: ignore[operator]
        "cls_attention": True,
        "vision_keys": False,
    }
