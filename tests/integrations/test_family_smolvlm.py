"""A family that the library does not know, added as data: SmolVLM, with tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from integrations import reference as ref
from torch import Tensor
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

import tokenops
from tokenops.integrations import Family
from tokenops.integrations.layouts import Unit
from tokenops.integrations.visual import place
from tokenops.recipes import feature_norm

IMAGE, SIDE = 60, 4


def tiles(base: Any, call: Mapping[str, Any], features: Sequence[Tensor], kind: str) -> list[Unit]:
    """All tiles of a sample, (tile, row, column)."""
    units = []
    for feature in features:
        axes = (feature.shape[0] // SIDE**2, SIDE, SIDE)
        grid = torch.cartesian_prod(*(torch.arange(size) for size in axes))
        units.append(Unit(kind, torch.arange(len(grid)), grid))
    return units


FAMILY = Family(
    "smolvlm",
    layout=tiles,
    features={"get_image_features": "image"},
    tokens={"image": "image_token_id"},
    language_model="text_model",
    vision_tower="vision_model",
)


@pytest.fixture
def model() -> SmolVLMForConditionalGeneration:
    vision = SmolVLMVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
    )
    config = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=2, image_token_id=IMAGE)
    return SmolVLMForConditionalGeneration(config).eval()


def batch(tiles_of: Sequence[int]) -> dict[str, Tensor]:
    """Left-padded prompts with so many tiles, each between marks."""
    rows = [[1, 5, *([7, *[IMAGE] * SIDE**2, 8] * n), 9, 10] for n in tiles_of]
    longest = max(map(len, rows))
    pixels = torch.zeros(len(rows), 2, 3, 32, 32)
    for row, n in enumerate(tiles_of):
        pixels[row, :n] = torch.randn(n, 3, 32, 32)
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": pixels,
    }


@pytest.mark.parametrize("tiles_of", [(2, 1), (0, 2, 1), (2, 0, 1), (1, 0)], ids=str)
def test_whole_is_identical_and_less_is_dense(model: Any, tiles_of: tuple[int, ...]) -> None:
    """Samples without an image too, wherever they stand in the batch."""
    inputs = batch(tiles_of)
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, feature_norm(keep=1.0), family=FAMILY):
            assert torch.equal(model(**inputs).logits, plain)
        with tokenops.attach(model, feature_norm(keep=0.5), family=FAMILY) as handle:
            got, trace = model(**inputs).logits, handle.trace
    # transformers hands out features per sample, or per tile in older releases: a unit is one piece of them
    assert {
        i: [sum(t.n for t in trace if t.sample == i), sum(t.k for t in trace if t.sample == i)]
        for i in range(len(tiles_of))
    } == {i: [16 * n, 8 * n] for i, n in enumerate(tiles_of)}
    keep = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    for t in trace:
        keep[t.sample, t.positions] = True
    want = dense(model, inputs, keep)
    ref.close(got[keep], want[keep])


def dense(model: Any, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """The model alone, all tokens in place, with the dropped ones hidden as keys."""
    length = keep.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & keep[:, None, None]
    seen = seen | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.arange(length).expand(keep.shape)
    with torch.no_grad():
        return model(**{**inputs, "attention_mask": mask, "position_ids": positions}).logits


def test_empty_units_are_passed_over() -> None:
    units = [Unit("image", torch.arange(n), torch.zeros(n, 3, dtype=torch.long)) for n in (0, 2, 0, 1)]
    found = place({"image": units}, {"image": torch.tensor([[False, True, True], [True, False, False]])})
    assert [(p.unit.n, p.row, p.positions.tolist()) for p in found] == [(2, 0, [1, 2]), (1, 1, [0])]
