"""At keep < 1, logits equal those of the plain model with the dropped tokens hidden by explicit masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny

import tokenops


def compare(model: Any, inputs: dict[str, Any], ratio: float, scope: str = "image") -> None:
    keep = ref.expected_keep(model, inputs, ratio, scope)
    want = ref.dense(model, ref.language_arguments(model, inputs), keep)
    with torch.no_grad(), tokenops.attach(model, ref.prune(ratio, scope=scope)):
        got = model(**inputs).logits
    assert got.shape == want.shape
    assert bool((keep.sum(1) < inputs["attention_mask"].sum(1)).any())
    ref.close(ref.real(inputs, got), ref.real(inputs, want))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_ragged_batch(family: str, backend: str, side: str, ratio: float) -> None:
    compare(ref.model(family, backend), tiny.batch(ref.prompts(family), side), ratio)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_every_image_size_alone(family: str, which: int) -> None:
    compare(ref.model(family), tiny.sample(family, [which], which), 0.3)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_one_budget_for_all_images_of_a_sample(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    assert not torch.equal(*(ref.expected_keep(model, inputs, 0.3, scope) for scope in ("image", "sample")))
    compare(model, inputs, 0.3, "sample")


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_without_a_mask(family: str) -> None:
    model = ref.model(family)
    inputs = tiny.sample(family, [0, 1], 1)
    keep = ref.expected_keep(model, inputs, 0.3)
    want = ref.dense(model, ref.language_arguments(model, inputs), keep)
    del inputs["attention_mask"]
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        ref.close(model(**inputs).logits, want)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_given_positions_are_kept(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) * 2 + 3
    if family == "qwen2_5_vl":
        positions = torch.stack([positions, positions + 1, positions * 2])
    compare(model, {**inputs, "position_ids": positions}, 0.3)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_an_image_first_and_an_image_last(family: str) -> None:
    inputs = tiny.sample(family, [0, 1], 1, (0, 0))
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = inputs[name][:, 1:]  # without the first text token
    if family != "qwen2_5_vl":  # the images touch: units are found by size, not by gaps
        inputs = tiny.sample(family, [0], 1, (0, 0))
        inputs = {k: v[:, 1:] if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
        assert int(inputs["input_ids"][0, 0]) == tiny.IMAGE
    compare(ref.model(family), inputs, 0.3)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_images_without_text_between(family: str) -> None:
    model = ref.model(family)
    apart = tiny.sample(family, [0, 1], 1, (3, 1))
    touching = dict(apart)
    between = (apart["input_ids"][0] != tiny.IMAGE).nonzero().flatten()[4]
    rest = torch.arange(apart["input_ids"].shape[1]) != between
    for name in ("input_ids", "attention_mask"):
        touching[name] = apart[name][:, rest]
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
        model(**apart)
        want = [t.index for t in handle.trace]
        model(**touching)
        got = [t.index for t in handle.trace]
    assert len(want) == len(got) == 2
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_batch_is_its_rows(family: str, side: str, dtype: torch.dtype) -> None:
    model = ref.model(family, dtype=dtype)
    samples = [ref.to(s, dtype) for s in ref.prompts(family)]
    inputs = tiny.batch(samples, side)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
        together = model(**inputs).logits
        chosen = [(t.sample, t.index) for t in handle.trace]
        for row, sample in enumerate(samples):
            alone = model(**sample).logits[0]
            own = together[row][inputs["attention_mask"][row].bool()]
            ref.close(own, alone, 2e-5 if dtype == torch.float32 else 0.05)
            if len(sample) > 3:
                assert [i.tolist() for r, i in chosen if r == row] == [t.index.tolist() for t in handle.trace]


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_another_image_does_not_change_what_an_image_keeps(family: str) -> None:
    model = ref.model(family)
    kept = []
    for images in ([0], [0, 1], [0, 3, 1]):
        inputs = tiny.sample(family, images, 7)
        with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
            model(**inputs)
        kept.append(handle.trace[0].index.tolist())
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_an_image_may_lose_every_token(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    keep = inputs["attention_mask"].bool() & (inputs["input_ids"] != tiny.IMAGE)
    keep &= inputs["input_ids"] != tiny.VIDEO
    want = ref.dense(model, ref.language_arguments(model, inputs), keep)
    nothing = ref.prune_by(lambda x, mask: torch.zeros_like(mask))
    with torch.no_grad(), tokenops.attach(model, nothing) as handle:
        ref.close(ref.real(inputs, model(**inputs).logits), ref.real(inputs, want))
    assert all(t.k == 0 for t in handle.trace)
