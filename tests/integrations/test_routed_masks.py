"""The caller's masks above routed layers, and how many masks are built for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import families, fates, sides
from integrations.test_masks import four, positions

import tokenops
from tokenops.integrations import routing
from tokenops.selectors.scorers import last_attention, next_attention

KEEPS = (0.6, None, 0.3)
kinds = pytest.mark.parametrize(
    ("backend", "kind"),
    [("sdpa", "bool"), pytest.param("sdpa", "float", marks=routed.slow), ("eager", "float")],
)


@kinds
@fates
@sides
@families
def test_four_dimensions(family: str, side: str, fate: str, backend: str, kind: str) -> None:
    model, inputs = ref.model(family, backend), routed.batch_of(family, side)
    inputs |= positions(model, inputs)
    deep = inputs | {"attention_mask": four(inputs["attention_mask"], kind)}
    for before in (tokenops.Pipeline(), ref.prune(0.6)):
        with torch.no_grad(), tokenops.attach(model, before | routed.routed(KEEPS, fate)):
            want, got = model(**inputs).logits, model(**deep).logits
        ref.close(ref.real(inputs, got), ref.real(inputs, want))


@pytest.mark.parametrize("content", ["bool", "float", "none"])
@fates
def test_a_dict_by_layer_type(fate: str, content: str) -> None:
    model = ref.model("qwen2_5_vl")
    inputs = tiny.batch([tiny.sample("qwen2_5_vl", [0, 1], 1), tiny.sample("qwen2_5_vl", [1, 0], 2)])
    inputs |= positions(model, inputs)
    mask = None if content == "none" else four(inputs["attention_mask"], content)
    deep = inputs | {"attention_mask": {"full_attention": mask}}
    with torch.no_grad(), tokenops.attach(model, routed.routed(KEEPS, fate)):
        ref.close(model(**deep).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "scorer", [routed.direction, last_attention, next_attention], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_four_dimensions_over_an_uneven_cache(family: str, kind: str, scorer: Any) -> None:
    """A second turn with a new image behind padding that only the caller's mask hides."""
    model = ref.model(family)
    turns = [
        tiny.batch([tiny.sample(family, [a, 1], a), tiny.sample(family, [b], b)]) for a, b in ((0, 3), (3, 1))
    ]
    mask = torch.cat([t["attention_mask"] for t in turns], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    split = turns[0]["input_ids"].shape[1]
    logits = []
    with torch.no_grad(), tokenops.attach(model, routed.routed((None, 0.6, 0.3), scorer=scorer)):
        for later in (mask, four(mask, kind)[:, :, split:]):
            first = turns[0] | {"position_ids": places[:, :split]}
            cache = model(**first, use_cache=True).past_key_values
            second = turns[1] | {"attention_mask": later, "position_ids": places[:, split:]}
            logits.append(model(**second, past_key_values=cache).logits)
    ref.close(ref.real(turns[1], logits[1]), ref.real(turns[1], logits[0]), 2e-5)


@fates
@families
def test_a_mask_that_is_not_causal(family: str, fate: str) -> None:
    """Images see themselves whole, also what of them runs in a layer."""
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    inputs |= positions(model, inputs)
    mask = four(inputs["attention_mask"], "bool")
    for _, at in ref.units(inputs["input_ids"]):
        mask[0, 0, at[0] : at[-1] + 1, at[0] : at[-1] + 1] = True
    with torch.no_grad():
        plain = model(**inputs | {"attention_mask": mask}).logits
        with tokenops.attach(model, routed.routed((None, None, 0.999), fate)):
            nearly = model(**inputs | {"attention_mask": mask}).logits
        with tokenops.attach(model, routed.routed((0.4, None, 0.3), fate)) as handle:
            got = model(**inputs | {"attention_mask": mask}).logits
            causal = model(**inputs).logits
    assert torch.isfinite(got).all()
    assert handle.tokens_per_layer[0] < handle.trace[0].n
    assert not torch.allclose(got[:, -1], causal[:, -1], atol=1e-3)
    assert nearly.shape == plain.shape


def built(monkeypatch: pytest.MonkeyPatch, model: Any, keeps: Any, inputs: dict[str, Any]) -> int:
    made: list[int] = []
    original = routing._causal

    def counting(*args: Any) -> torch.Tensor:
        made.append(1)
        return original(*args)

    with monkeypatch.context() as patch, torch.no_grad(), tokenops.attach(model, routed.routed(keeps)):
        patch.setattr(routing, "_causal", counting)
        model(**inputs)
    return len(made)


@pytest.mark.parametrize(
    "keeps", [(0.3, 0.3, 0.3), (None, 0.3, 0.3), (0.5, 0.3, 0.5), (0.6, 0.4, 0.2), (None, None, 0.3)], ids=str
)
@families
def test_one_mask_for_each_kept_length(family: str, keeps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With line breaks, layers of equal keep may differ in length."""
    model, one = ref.model(family), tiny.sample(family, [0, 1], 1)
    for inputs in (routed.batch_of(family, "left"), routed.batch_of(family, "right"), one):
        runs = routed.expected(model, inputs, keeps, "skip").runs
        lengths = len({tuple(r.sum(1).tolist()) for r in runs})
        assert lengths == len(set(keeps)) or family == "llava_next"
        assert built(monkeypatch, ref.model(family, "eager"), keeps, inputs) == lengths
        assert built(monkeypatch, ref.model(family), keeps, inputs) == (0 if inputs is one else lengths)


def test_decoding_shares_masks_between_layers_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = ref.model("llava"), routed.batch_of("llava")
    made: list[int] = []
    original = routing._causal

    def counting(*args: Any) -> torch.Tensor:
        made.append(1)
        return original(*args)

    with torch.no_grad(), tokenops.attach(model, routed.routed((None, 0.3, 0.3))):
        cache = model(**inputs, use_cache=True).past_key_values
        monkeypatch.setattr(routing, "_causal", counting)
        grown = ref.extend(inputs, torch.full((4, 1), 7))
        model(input_ids=torch.full((4, 1), 7), attention_mask=grown["attention_mask"], past_key_values=cache)
    assert len(made) == 2
