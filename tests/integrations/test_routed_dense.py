"""Routed layers give the logits of the plain model, layer by layer with explicit masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, families, fates, sides

import tokenops


@pytest.mark.parametrize("schedule", routed.SCHEDULES)
@fates
@sides
@backends
@families
def test_ragged_batch(family: str, backend: str, side: str, fate: str, schedule: str) -> None:
    model, inputs = ref.model(family, backend), routed.batch_of(family, side)
    routed.compare(model, inputs, routed.SCHEDULES[schedule], fate)


@pytest.mark.parametrize("schedule", ["every", "pyramid"])
@families
def test_padding_on_the_right_and_eager_attention(family: str, schedule: str) -> None:
    """Of the grid above, what is left out of the everyday run."""
    model, inputs = ref.model(family, "eager"), routed.batch_of(family, "right")
    routed.compare(model, inputs, routed.SCHEDULES[schedule], "exit" if schedule == "every" else "skip")


def test_the_cases_differ() -> None:
    """Another fate or schedule is seen in the logits."""
    model, inputs = ref.model("llava"), routed.batch_of("llava")
    cases = [(keeps, fate) for keeps in routed.SCHEDULES.values() for fate in ("skip", "exit")]
    cases.remove((routed.SCHEDULES["first"], "exit"))  # what exits once, or in every layer, is the same
    logits = [ref.real(inputs, routed.expected(model, inputs, *case).logits) for case in cases]
    for i, a in enumerate(logits):
        for b in logits[i + 1 :]:
            assert float((a - b).abs().max()) > 1e-2


@pytest.mark.parametrize("which", range(4))
@fates
@families
def test_every_image_size_alone(family: str, which: int, fate: str) -> None:
    routed.compare(ref.model(family), tiny.sample(family, [which], which), (0.3, 0.3, 0.2), fate)


@fates
@families
def test_without_a_mask(family: str, fate: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    want = routed.expected(model, inputs, (0.3, 0.3, 0.3), fate).logits
    del inputs["attention_mask"]
    with torch.no_grad(), tokenops.attach(model, routed.routed(0.3, fate)):
        ref.close(model(**inputs).logits, want)


@families
def test_given_positions_are_kept(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) * 2 + 3
    if family == "qwen2_5_vl":
        positions = torch.stack([positions, positions + 1, positions * 2])
    routed.compare(model, {**inputs, "position_ids": positions}, (0.3, 0.3, 0.3), "skip")


@families
def test_one_row_of_positions_for_all(family: str) -> None:
    """LLaMA numbers a batch with (1, l)."""
    model = ref.model(family)
    inputs = tiny.batch([tiny.sample(family, [0], 1), tiny.sample(family, [1], 2)], "right")
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(length)[None] * 2
    if family == "qwen2_5_vl":
        positions = positions.expand(3, 2, -1) + torch.arange(3)[:, None, None]
    routed.compare(model, {**inputs, "position_ids": positions}, (0.3, None, 0.3), "skip")


@fates
@families
def test_an_image_first(family: str, fate: str) -> None:
    """Nothing before the image: where its tokens exit, the first kept token fills."""
    inputs = tiny.sample(family, [0], 1, (0, 2))
    start = {
        k: v[:, 1:] for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    routed.compare(ref.model(family), inputs | start, (0.3, 0.3, 0.3), fate)


class At(torch.nn.Module):
    """A scorer that differs from layer to layer."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return routed.direction(x) * (-1) ** self.layer


@fates
@families
def test_a_scorer_for_each_layer(family: str, fate: str) -> None:
    scorers = {0: At(0), 1: At(1), 2: At(2)}

    def score(layer: routed.Layer) -> torch.Tensor:
        return routed.by_direction(layer) * (-1) ** layer.number

    routed.compare(ref.model(family), routed.batch_of(family), (0.5, 0.4, 0.3), fate, scorers, score)


@fates
@sides
@families
def test_a_batch_is_its_rows(family: str, side: str, fate: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples, side)
    with torch.no_grad(), tokenops.attach(model, routed.routed((0.5, 0.3, 0.2), fate)):
        together = model(**inputs).logits
        for row, sample in enumerate(samples):
            own = together[row][inputs["attention_mask"][row].bool()]
            ref.close(own, model(**sample).logits[0], 2e-5)


@fates
@families
def test_counts_above_the_image_keep_it_all(family: str, fate: str) -> None:
    """Small images run whole where a big one does not."""
    routed.compare(ref.model(family), routed.batch_of(family), (9, 9, 5), fate)


@families
def test_counts_that_grow_again(family: str) -> None:
    """An exit is for good: a later layer that keeps more finds no more."""
    routed.compare(ref.model(family), routed.batch_of(family), (0.2, 0.6, 0.1), "exit")
    routed.compare(ref.model(family), routed.batch_of(family), (8, 0.5, 5), "exit")
    routed.compare(ref.model(family), routed.batch_of(family), (0.2, 0.6, 0.1), "skip")


@fates
@families
def test_text_only_rows_are_the_plain_model(family: str, fate: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with torch.no_grad():
        plain = model(**inputs).logits[2]
        with tokenops.attach(model, routed.routed(0.3, fate)):
            got = model(**inputs).logits[2]
    real: Any = inputs["attention_mask"][2].bool()
    ref.close(got[real], plain[real], 1e-6)
