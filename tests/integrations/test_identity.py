"""With everything kept, an attached model computes the same bits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny

import tokenops
from tokenops import Pipeline, Prune
from tokenops.selectors import TopK
from tokenops.selectors.scorers import cls_attention


def everything(family: str) -> Pipeline:
    """keep = 1.0, reading CLS attention where the family has it."""
    if family == "qwen2_5_vl":
        return ref.prune(1.0)
    return Pipeline(after_projector=Prune(TopK(cls_attention, 1.0)))


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "nomask"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_logits_and_loss_are_the_same_bits(
    family: str, backend: str, dtype: torch.dtype, side: str, masked: bool
) -> None:
    model = ref.model(family, backend, dtype)
    inputs: dict[str, Any] = ref.to(tiny.batch(ref.prompts(family), side), dtype)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    if not masked:
        del inputs["attention_mask"]
    with torch.no_grad():
        plain = model(**inputs)
        with tokenops.attach(model, everything(family)) as handle:
            attached = model(**inputs)
    assert torch.equal(attached.logits, plain.logits)
    assert torch.equal(attached.loss, plain.loss)
    assert len(handle.trace) == 6
    assert all(t.k == t.n for t in handle.trace)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_generate_is_the_same_bits(family: str, backend: str, dtype: torch.dtype) -> None:
    model = ref.model(family, backend, dtype)
    inputs = ref.to(tiny.batch(ref.prompts(family)), dtype)
    run = functools.partial(
        model.generate, **inputs, max_new_tokens=4, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    plain = run()
    with tokenops.attach(model, everything(family)):
        attached = run()
    assert torch.equal(attached.sequences, plain.sequences)
    assert torch.equal(torch.stack(attached.logits), torch.stack(plain.logits))


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_gradients_are_the_same_bits(family: str) -> None:
    model = ref.model(family).train()
    inputs = tiny.batch(ref.prompts(family))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with tokenops.attach(model, ref.prune(1.0)):
        attached = gradients()
    assert len(plain) == len(attached) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, attached, strict=True))


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_count_above_the_image_keeps_it_all(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, ref.prune(10_000)):
            assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_an_empty_pipeline_changes_nothing(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, Pipeline()) as handle:
            assert torch.equal(model(**inputs).logits, plain)
    assert handle.trace == ()


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_the_same_bits_again_after_removal(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, ref.prune(0.3)):
            assert not torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, plain)
