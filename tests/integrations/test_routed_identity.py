"""Routes that leave nothing out compute the same bits; before the first choice, so does every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, families, fates, sides

import tokenops
from tokenops.selectors.scorers import last_attention, next_attention


@pytest.mark.parametrize("keeps", [(1.0, 1.0, 1.0), (None, 1.0, None), (10_000, None, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@fates
@families
def test_everything_kept_is_the_same_bits(family: str, fate: str, dtype: torch.dtype, keeps: Any) -> None:
    model = ref.model(family, dtype=dtype)
    inputs: dict[str, Any] = ref.to(routed.batch_of(family), dtype)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    with torch.no_grad():
        plain = model(**inputs)
        with tokenops.attach(model, routed.routed(keeps, fate)) as handle:
            attached = model(**inputs)
            assert all(t.k == t.n for t in handle.trace)
    assert torch.equal(attached.logits, plain.logits)
    assert torch.equal(attached.loss, plain.loss)


@backends
@sides
@families
def test_the_lens_changes_no_bits(family: str, side: str, backend: str) -> None:
    model, inputs = ref.model(family, backend), routed.batch_of(family, side)
    with torch.no_grad():
        plain = model(**inputs).logits
        for scorer in (last_attention, next_attention):
            with tokenops.attach(model, routed.routed((None, 1.0, 1.0), scorer=scorer)):
                assert torch.equal(model(**inputs).logits, plain)
                text = tiny.sample(family, [], 3)
                assert torch.isfinite(model(**text).logits).all()
        assert torch.equal(model(**inputs).logits, plain)


@families
def test_generate_is_the_same_bits(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    run: dict[str, Any] = {**inputs, "max_new_tokens": 3, "do_sample": False}
    run |= {"output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**run)
    with tokenops.attach(model, routed.routed(1.0)):
        attached = model.generate(**run)
    assert torch.equal(attached.sequences, plain.sequences)
    assert torch.equal(torch.stack(attached.logits), torch.stack(plain.logits))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@fates
@families
def test_layers_before_the_first_choice(family: str, fate: str, dtype: torch.dtype) -> None:
    model = ref.model(family, dtype=dtype)
    inputs = ref.to(routed.batch_of(family), dtype)
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        with tokenops.attach(model, routed.routed((None, 0.3, 0.2), fate)):
            attached = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(ref.real(inputs, attached[0]), ref.real(inputs, plain[0]))
    assert torch.equal(ref.real(inputs, attached[1]), ref.real(inputs, plain[1]))
    assert not torch.equal(attached[2], plain[2])


@fates
@families
def test_hidden_states_and_attentions(family: str, fate: str) -> None:
    """One hidden state for each layer, whole sequences; maps over what ran."""
    model, inputs = ref.model(family, "eager"), routed.batch_of(family)
    keeps = (0.6, None, 0.3)
    want = routed.expected(model, inputs, keeps, fate)
    with torch.no_grad(), tokenops.attach(model, routed.routed(keeps, fate)):
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        alone = model.model(**inputs).last_hidden_state
    assert len(out.hidden_states) == 4
    for got, expected in zip(out.hidden_states[:-1], want.states, strict=False):
        ref.close(ref.real(inputs, got), ref.real(inputs, expected))
    assert torch.equal(out.hidden_states[-1], alone)
    for weights, ran in zip(out.attentions, want.runs, strict=True):
        most = int(ran.sum(1).max())
        # a layer that runs everything sees the padding, too
        longest = most if bool((ran.sum(1) < inputs["attention_mask"].sum(1)).any()) else ran.shape[1]
        assert weights.shape == (4, 4, longest, longest)
