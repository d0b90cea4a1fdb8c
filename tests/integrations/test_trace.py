"""``handle.trace``: what was kept, where, checked against the features and the model's own packing."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny

import tokenops
from tokenops import Pipeline, Prune, Selection

families = pytest.mark.parametrize("family", ref.FAMILIES)


@families
def test_the_schema(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    keep = ref.expected_keep(model, inputs, 0.3)
    visual = (inputs["input_ids"] == tiny.IMAGE) | (inputs["input_ids"] == tiny.VIDEO)
    found = ref.units(inputs["input_ids"])
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
        assert handle.trace == ()
        model(**inputs)
    trace = handle.trace
    assert [t.image for t in trace] == list(range(6))
    assert [t.sample for t in trace] == [row for row, _ in found] == [0, 0, 1, 3, 3, 3]
    kinds = ["video" if inputs["input_ids"][r, at[0]] == tiny.VIDEO else "image" for r, at in found]
    assert [t.kind for t in trace] == kinds
    assert ("video" in kinds) == (family == "qwen2_5_vl")
    for t, (row, at) in zip(trace, found, strict=True):
        assert (t.stage, t.layer, t.nan_scores) == ("after_projector", None, 0)
        assert t.k == len(t.index) == len(t.grid) == len(t.positions) == max(1, int(0.3 * t.n + 1e-6))
        assert set(t.positions.tolist()) <= set(at)
        assert bool(visual[row, t.positions].all())
        assert bool(keep[row, t.positions].all())
        assert (t.positions.diff() > 0).all()
        assert t.scores is not None
        assert t.scores.shape == (t.n,)
        best = t.scores.topk(t.k).values.min()
        order = torch.tensor(at)
        assert int((t.scores >= best).sum()) == t.k
        assert torch.equal(t.candidates[t.scores >= best], t.index)
        assert t.kept_scores is not None
        assert torch.equal(t.kept_scores, t.scores[t.scores >= best])
        if family != "llava_next":
            assert t.n == len(at)
            assert torch.equal(order[t.index], t.positions)


@families
def test_unscored_selectors_and_nan_scores(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    every = ref.prune_by(lambda x, mask: torch.arange(x.shape[1]) % 2 == 0)

    def nans(x: torch.Tensor, *, mask: torch.Tensor) -> Selection:
        scores = torch.full(mask.shape, torch.nan).index_fill(1, torch.tensor([0, 1]), 1.0)
        return replace(Selection.from_mask(mask & ~scores.isnan()), scores=scores)

    with torch.no_grad():
        with tokenops.attach(model, every) as handle:
            model(**inputs)
            assert all(t.scores is None and t.kept_scores is None for t in handle.trace)
            assert all(t.nan_scores == 0 for t in handle.trace)
            assert all(t.k == (t.n + 1) // 2 for t in handle.trace)
        with tokenops.attach(model, Pipeline(after_projector=Prune(nans))) as handle:
            model(**inputs)
            assert [t.nan_scores for t in handle.trace] == [t.n - 2 for t in handle.trace]


@families
def test_one_entry_per_image_in_sample_scope(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    keep = ref.expected_keep(model, inputs, 0.3, "sample")
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3, scope="sample")) as handle:
        model(**inputs)
    assert [t.sample for t in handle.trace] == [0, 0, 1, 3, 3, 3]
    for row in (0, 1, 3):
        own = [t for t in handle.trace if t.sample == row]
        assert sum(t.k for t in own) == int(0.3 * sum(t.n for t in own) + 1e-6)
        for t in own:
            assert bool(keep[row, t.positions].all())


@pytest.mark.parametrize("which", range(4))
def test_crops_rows_and_columns_of_llava_next(which: int) -> None:
    """Every feature is given its (crop, row, column) as content and packed by the model."""
    model, inputs = ref.model("llava_next"), tiny.sample("llava_next", [which], which)
    every = ref.prune_by(lambda x, mask: mask)
    with torch.no_grad(), tokenops.attach(model, every) as handle:
        model(**inputs)
    (trace,) = handle.trace
    crops = inputs["pixel_values"].shape[1]
    own = torch.cartesian_prod(*(torch.arange(n) for n in (crops, 4, 4))).float()
    packed, _ = model.model.pack_image_features(
        [own.view(crops, 16, 3)],
        inputs["image_sizes"],
        vision_feature_select_strategy="default",
        image_newline=torch.full((3,), -1.0),
    )
    patches = packed[0][(packed[0] >= 0).all(-1)].long()
    assert torch.equal(trace.grid, patches)
    assert torch.equal(trace.index, patches[:, 0] * 16 + patches[:, 1] * 4 + patches[:, 2])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_grid_of_qwen_is_where_the_pixels_are(which: int) -> None:
    """The windows of the tower reorder patches inside; the changed cell is the feature that moves most."""
    model = ref.model("qwen2_5_vl")
    inputs = tiny.sample("qwen2_5_vl", [which], which)
    kind = "video" if "video_grid_thw" in inputs else "image"
    pixels, (t, h, w) = next(iter(k for k in inputs if "pixel" in k)), inputs[f"{kind}_grid_thw"][0].tolist()
    for block in model.model.visual.blocks:  # windows and full attention would spread the change
        block.attn.proj.weight.data.mul_(1e-3)
        block.attn.proj.bias.data.zero_()
    every = ref.prune_by(lambda x, mask: mask)
    with torch.no_grad(), tokenops.attach(model, every) as handle:
        base = ref.language_arguments(model, inputs)["inputs_embeds"]
        (trace,) = handle.trace
        for cell in (0, 3, trace.n - 2):
            frame, row, column = trace.grid[cell].tolist()
            changed = dict(inputs, **{pixels: inputs[pixels].clone()})
            # pixels come merge block by merge block, two by two patches each
            first = ((frame * h // 2 + row) * (w // 2) + column) * 4
            changed[pixels][first : first + 4] += 1.0
            moved = (ref.language_arguments(model, changed)["inputs_embeds"] - base).norm(dim=-1)[0]
            assert int(moved.argmax()) == int(trace.positions[cell])
    assert t * h * w // 4 == trace.n


@families
def test_the_same_features_for_two_prompts(family: str) -> None:
    """Features computed once by the attached model and handed to two calls."""
    model = ref.model(family)
    inputs = tiny.sample(family, [0], 1)
    other = ref.extend(inputs, torch.tensor([[7, 8, 9]]))
    given = {k: v for k, v in inputs.items() if "pixel" in k or "image_" in k}
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
        want = [(model(**x).logits, handle.trace[0].index) for x in (inputs, other)]
        if "mm_encoder_outputs" not in inspect.signature(model.model.forward).parameters:
            pytest.skip("this transformers encodes inside forward only")
        encoded = model.get_image_features(**given, return_dict=True)
        for x, (logits, index) in zip((inputs, other), want, strict=True):
            rest: dict[str, Any] = {k: v for k, v in x.items() if "pixel" not in k}
            got = model(**rest, mm_encoder_outputs={"image": encoded}).logits
            ref.close(got, logits, 1e-6)
            assert torch.equal(handle.trace[0].index, index)
