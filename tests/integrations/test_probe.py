"""CLS attention read by the probe is the vision tower's own eager attention map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import Tensor

import tokenops
from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.selectors import TopK
from tokenops.selectors.scorers import cls_attention

towers = pytest.mark.parametrize("family", ["llava", "llava_next"])
BY_CLS = Pipeline(after_projector=Prune(TopK(cls_attention, 0.3)))


def build(family: str, layer: Any = -2, backend: str = "sdpa", **changes: Any) -> Any:
    model = tiny.MODELS[family](attn_implementation=backend, **changes)
    model.config.vision_feature_layer = layer
    if isinstance(layer, list):
        torch.manual_seed(1)
        wide = torch.nn.Linear(32 * len(layer), 48)
        model.model.multi_modal_projector.linear_1 = wide
    return model


def maps(model: Any, pixels: Tensor, layer: int) -> Tensor:
    """(crops, patches): the CLS row of the block's eager attention, heads averaged."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = tower(pixels, output_attentions=True).attentions
    model.set_attn_implementation(before)
    block = layer if layer < 0 else layer - 1
    return attention[block].mean(1)[:, 0, 1:]


def flat_pixels(inputs: dict[str, Any], crops: list[int]) -> Tensor:
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4:
        return pixels
    return torch.cat([p[:n] for p, n in zip(pixels, crops, strict=True)])


def crops_of(model: Any, inputs: dict[str, Any]) -> list[int]:
    if "image_sizes" not in inputs:
        return [1] * len(inputs["pixel_values"])
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    points = model.config.image_grid_pinpoints
    return [image_size_to_num_patches(size, points, 16) for size in inputs["image_sizes"]]


@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("layer", [-2, -1, 2, 3, [-3, -2], [1, -1]], ids=str)
@towers
def test_scores_are_the_eager_map(family: str, layer: Any, backend: str) -> None:
    model, inputs = build(family, layer, backend), tiny.batch(ref.prompts(family))
    read = layer[-1] if isinstance(layer, list) else layer
    crops = crops_of(model, inputs)
    rows = maps(model, flat_pixels(inputs, crops), read)
    per_image = [part.flatten() for part in rows.split(crops)]
    with torch.no_grad(), tokenops.attach(model, BY_CLS) as handle:
        model(**inputs)
    assert len(handle.trace) == len(per_image) == 6
    for trace, row in zip(handle.trace, per_image, strict=True):
        patch = trace.grid[:, 0] * 16 + trace.grid[:, 1] * 4 + trace.grid[:, 2]
        assert torch.equal(trace.index, patch)
        kept = torch.isin(torch.arange(len(row)), trace.index)
        assert trace.scores is not None
        if family == "llava":
            torch.testing.assert_close(trace.scores, row, atol=1e-6, rtol=1e-5)
            assert row[kept].min() >= row[~kept].max()
        else:  # some patches were padding of the crops and are gone
            assert len(trace.scores) == trace.n <= len(row)
            chosen = trace.scores.topk(trace.k).values.sort().values
            torch.testing.assert_close(chosen, row[trace.index].sort().values, atol=1e-6, rtol=1e-5)


@towers
def test_generate_reads_the_same_scores(family: str) -> None:
    model, inputs = build(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, BY_CLS) as handle:
        with torch.no_grad():
            model(**inputs)
        want = [t.scores for t in handle.trace]
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        got = [t.scores for t in handle.trace]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@towers
def test_other_methods_of_a_probed_tower_are_the_same_bits(family: str) -> None:
    model, inputs = build(family), tiny.sample(family, [1], 1)
    pixels = inputs["pixel_values"].flatten(0, -4)
    tower = model.model.vision_tower
    with torch.no_grad():
        plain = tower(pixels, output_hidden_states=True)
        with tokenops.attach(model, BY_CLS):
            probed = tower(pixels, output_hidden_states=True)
    for a, b in zip(probed.hidden_states, plain.hidden_states, strict=True):
        assert torch.equal(a, b)


@towers
def test_switching_the_attention_while_attached(family: str) -> None:
    model, inputs = build(family), tiny.batch(ref.prompts(family))
    config = model.model.vision_tower.encoder.layers[1].self_attn.config
    with torch.no_grad():
        model.set_attn_implementation("eager")
        with tokenops.attach(model, BY_CLS):
            eager = model(**inputs).logits
        model.set_attn_implementation("sdpa")
        with tokenops.attach(model, BY_CLS) as handle:
            sdpa = model(**inputs).logits
            model.set_attn_implementation("eager")
            assert torch.equal(model(**inputs).logits, eager)
            assert len(handle.trace) == 6
            model.set_attn_implementation("sdpa")
            assert torch.equal(model(**inputs).logits, sdpa)
            model.set_attn_implementation("eager")
    block = model.model.vision_tower.encoder.layers[1].self_attn
    assert block.config is config
    assert config._attn_implementation == "eager"
    assert "_tokenops_lens" not in vars(block)
    with torch.no_grad(), tokenops.attach(model, BY_CLS):
        assert torch.equal(model(**inputs).logits, eager)


@pytest.mark.parametrize("backend", ref.BACKENDS)
def test_the_full_feature_strategy_has_a_cls_token(backend: str) -> None:
    """The CLS token itself is a visual token there; its score is the attention it pays to itself."""
    model = build("llava", backend=backend)
    model.config.vision_feature_select_strategy = "full"
    inputs = tiny.sample("llava", [0], 1)
    at = ref.units(inputs["input_ids"])[0][1][0]
    ids = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([ids[:, :at], ids[:, at : at + 1], ids[:, at:]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    rows = maps(model, inputs["pixel_values"], -2)[0]
    with torch.no_grad(), tokenops.attach(model, BY_CLS) as handle:
        model(**inputs)
    (trace,) = handle.trace
    assert trace.n == 17
    assert trace.scores is not None
    torch.testing.assert_close(trace.scores[1:], rows, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(trace.scores[0], 1 - rows.sum(), atol=1e-5, rtol=1e-5)


def test_a_last_crop_of_padding_only() -> None:
    """Of three crops of a wide image below each other, only the middle one shows something."""
    model = build("llava_next")
    model.config.image_grid_pinpoints = [[48, 16]]
    pixels = torch.randn(1, 4, 3, 16, 16)
    size = torch.tensor([[10, 100]])
    packed, _ = model.model.pack_image_features(
        [torch.zeros(4, 16, 1)], size, vision_feature_select_strategy="default", image_newline=torch.ones(1)
    )
    ids = torch.tensor([[1, 5, *[tiny.IMAGE] * len(packed[0]), 6]])
    rows = maps(model, pixels[0], -2)
    with torch.no_grad(), tokenops.attach(model, BY_CLS) as handle:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_sizes=size)
    (trace,) = handle.trace
    assert trace.scores is not None
    torch.testing.assert_close(trace.scores[:16], rows[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, -4, 9])
def test_a_feature_layer_that_is_no_block_is_refused(layer: int) -> None:
    model = build("llava", layer)
    with pytest.raises(TokenOpsError, match="vision_feature_layer"):
        tokenops.attach(model, BY_CLS)
