"""4-D masks, boolean or additive, at the seam: the same as the 2-D mask they were made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import Tensor

import tokenops


def four(mask: Tensor, kind: str) -> Tensor:
    length = mask.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    if kind == "bool":
        return seen
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def positions(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    given = ref.language_arguments(model, inputs).get("position_ids")
    return {} if given is None else {"position_ids": given}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("backend", "kind"), [("sdpa", "bool"), ("sdpa", "float"), ("eager", "float")])
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_four_dimensions(family: str, backend: str, kind: str, side: str) -> None:
    model, inputs = ref.model(family, backend), tiny.batch(ref.prompts(family), side)
    inputs |= positions(model, inputs)
    deep = inputs | {"attention_mask": four(inputs["attention_mask"], kind)}
    with torch.no_grad():
        with tokenops.attach(model, ref.prune(0.3)):
            want, got = model(**inputs).logits, model(**deep).logits
        plain = model(**deep).logits
        with tokenops.attach(model, ref.prune(1.0)):
            assert torch.equal(model(**deep).logits, plain)
    ref.close(ref.real(inputs, got), ref.real(inputs, want))


@pytest.mark.parametrize("content", ["bool", "float", "none"])
def test_a_dict_by_layer_type(content: str) -> None:
    model = ref.model("qwen2_5_vl")
    inputs = tiny.batch([tiny.sample("qwen2_5_vl", [0, 1], 1), tiny.sample("qwen2_5_vl", [1, 0], 2)])
    inputs |= positions(model, inputs)
    assert inputs["attention_mask"].all()
    mask = None if content == "none" else four(inputs["attention_mask"], content)
    deep = inputs | {"attention_mask": {"full_attention": mask}}
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        ref.close(model(**deep).logits, model(**inputs).logits)


def test_a_mask_that_is_not_causal() -> None:
    """Rows may look at the whole image: the pattern survives the reduction."""
    model, inputs = ref.model("llava"), tiny.sample("llava", [0, 1], 1)
    keep = ref.expected_keep(model, inputs, 0.3)
    call = ref.language_arguments(model, inputs)
    mask = four(inputs["attention_mask"], "bool")
    for _, at in ref.units(inputs["input_ids"]):
        mask[0, 0, at[0] : at[-1] + 1, at[0] : at[-1] + 1] = True
    hidden = mask & (keep[:, None, None, :] | torch.eye(mask.shape[-1], dtype=torch.bool))
    places = torch.arange(mask.shape[-1])[None]
    with torch.no_grad():
        out = model.model.language_model(
            inputs_embeds=call["inputs_embeds"], attention_mask=hidden, position_ids=places, use_cache=False
        ).last_hidden_state
        with tokenops.attach(model, ref.prune(0.3)):
            got = model(**inputs | {"attention_mask": mask}).logits
    ref.close(got[keep], model.lm_head(out)[keep])


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_four_dimensions_over_a_shortened_cache(family: str, kind: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    words = torch.randint(3, 80, (4, 3), generator=torch.Generator().manual_seed(3))
    grown = ref.extend(inputs, words)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        want = model(**grown, use_cache=False).logits[:, -3:]
        cache = model(**inputs, use_cache=True).past_key_values
        mask = four(grown["attention_mask"], kind)[:, :, -3:]
        got = model(input_ids=words, attention_mask=mask, past_key_values=cache).logits
    ref.close(got, want, 2e-5)
