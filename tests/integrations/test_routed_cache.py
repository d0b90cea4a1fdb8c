"""Caches of routed models: second turns, cropping, moved rows, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, fates, few
from integrations.test_cache import prefill, step, whole, words
from torch import Tensor
from transformers import DynamicCache, QuantizedCache, StaticCache

import tokenops
from tokenops import Pipeline, TokenOpsError
from tokenops.routers import Route
from tokenops.selectors.scorers import feature_norm, last_attention, next_attention

KEEPS = (0.6, None, 0.2)


def held(cache: Any) -> list[tuple[int, ...]]:
    return [tuple(layer.keys.shape) if layer.is_initialized else () for layer in cache.layers]


@fates
@backends
@few
def test_second_turn_of_text(family: str, backend: str, fate: str) -> None:
    model, inputs = routed.talker(family, backend), routed.batch_of(family)
    run: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    with tokenops.attach(model, routed.routed(KEEPS, fate)):
        first = model.generate(**inputs, **run)
        said = torch.cat([first.sequences[:, inputs["input_ids"].shape[1] :], words(4)], 1)
        talk = ref.extend(inputs, said)
        text = {k: v for k, v in talk.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
        second = model.generate(**text, **run, past_key_values=first.past_key_values, output_logits=True)
        tokens, logits = ref.continue_greedily(model, talk, 3)
    assert torch.equal(second.sequences[:, -3:], tokens)
    ref.close(torch.stack(second.logits, 1), logits, 2e-5)


def turns_of(family: str) -> tuple[list[dict[str, Any]], list[Tensor], Tensor]:
    """Two ragged turns with images, positions for each, and the mask over both."""
    turns = [
        tiny.batch([tiny.sample(family, [a, 1], a), tiny.sample(family, [b], b)]) for a, b in ((0, 3), (3, 1))
    ]
    mask = torch.cat([t["attention_mask"] for t in turns], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    split = turns[0]["input_ids"].shape[1]
    places = [positions[:, :split], positions[:, split:]]
    if family == "qwen2_5_vl":
        places = [torch.stack([p, p // 2, p * 2 % 7]) for p in places]
    return turns, places, mask


SCORES = {
    "direction": (routed.direction, routed.by_direction),
    "last": (last_attention, routed.by_last_attention),
    "next": (next_attention, routed.by_next_attention),
}


@pytest.mark.parametrize("scorer", SCORES)
@fates
@backends
@few
def test_second_turn_with_new_images(family: str, backend: str, fate: str, scorer: str) -> None:
    """Against the reference over both turns: what ran in the first stays as it was."""
    model, keeps = ref.model(family, backend), (None, 0.6, 0.3)
    turns, places, mask = turns_of(family)
    split = turns[0]["input_ids"].shape[1]
    calls = [
        ref.language_arguments(model, t | {"position_ids": p}) for t, p in zip(turns, places, strict=True)
    ]
    together = {
        "inputs_embeds": torch.cat([c["inputs_embeds"] for c in calls], 1),
        "position_ids": torch.cat([c["position_ids"] for c in calls], -1),
    }
    own, score = SCORES[scorer]
    with torch.no_grad():
        units = [routed.unit_lines(model, c, t["input_ids"]) for c, t in zip(calls, turns, strict=True)]
        first = routed.dense(model, calls[0], units[0], turns[0]["attention_mask"].bool(), keeps, fate, score)
        moved = [
            (row, [([p + split for p in line], None if end is None else end + split) for line, end in lines])
            for row, lines in units[1]
        ]
        want = two_turns(model, together, moved, mask.bool(), keeps, fate, score, first.runs)
        with tokenops.attach(model, routed.routed(keeps, fate, own)):
            cache = model(**turns[0], position_ids=places[0], use_cache=True).past_key_values
            later = turns[1] | {"attention_mask": mask, "position_ids": places[1]}
            got = model(**later, past_key_values=cache).logits
    ref.close(ref.real(turns[1], got), ref.real(turns[1], want[:, split:]), 2e-5)
    assert cache.get_seq_length() == mask.shape[1]


def two_turns(
    model: Any,
    call: dict[str, Any],
    units: Any,
    entered: Tensor,
    keeps: routed.Keeps,
    fate: str,
    score: Any,
    before: list[Tensor],
) -> Tensor:
    """The reference over both turns, the first turn's choices given."""
    split = before[0].shape[1]
    lm = model.model.language_model
    hidden, places = call["inputs_embeds"], call["position_ids"]
    places = places[1:] if places.ndim == 3 and places.shape[0] == 4 else places
    angles = lm.rotary_emb(hidden, places)
    alive, weights = entered.clone(), None
    for number, (layer, keep) in enumerate(zip(lm.layers, keeps, strict=True)):
        normed = layer.input_layernorm(hidden)
        alive[:, :split] = before[number]

        def attend(among: Tensor, layer: Any = layer, normed: Tensor = normed) -> Tensor:
            mask = routed.additive(among, normed.dtype)
            return routed.attention_map(layer.self_attn, normed, mask, angles)

        ran = alive.clone()
        if keep is not None:
            scores = score(routed.Layer(number, normed, alive, attend, weights))
            ran = routed.choose(units, scores, entered, alive, keep)
        weights = attend(ran)
        mask = routed.additive(ran, hidden.dtype)
        out = layer(hidden, attention_mask=mask, position_embeddings=angles, position_ids=None)
        out = out[0] if isinstance(out, tuple) else out
        hidden = torch.where(ran[..., None], out, hidden)
        alive = ran.clone() if fate == "exit" else entered.clone()
    alive[:, :split] = before[-1]
    return model.lm_head(routed.filled(lm.norm(hidden), alive))


@fates
@few
def test_several_new_tokens_at_once(family: str, fate: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with tokenops.attach(model, routed.routed(KEEPS, fate)):
        cache = prefill(model, inputs)
        ref.close(step(model, inputs, words(4, 5), cache), whole(model, inputs, words(4, 5)), 2e-5)


@few
def test_a_turn_of_text_before_the_image(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    if family == "qwen2_5_vl":
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    axis = {"input_ids": 1, "mm_token_type_ids": 1, "position_ids": -1}
    with tokenops.attach(model, routed.routed(KEEPS)), torch.no_grad():
        want = model(**inputs, use_cache=False).logits[:, 2:]
        start = {k: v.narrow(axis[k], 0, 2) for k, v in inputs.items() if k in axis}
        rest = {k: v.narrow(axis[k], 2, v.shape[axis[k]] - 2) if k in axis else v for k, v in inputs.items()}
        cache = model(**start, use_cache=True).past_key_values
        ref.close(model(**rest, past_key_values=cache).logits, want)


@fates
@few
def test_crop_forgets_the_last_tokens(family: str, fate: str) -> None:
    model, inputs, said = ref.model(family), routed.batch_of(family), words(4, 5)
    with tokenops.attach(model, routed.routed(KEEPS, fate)):
        cache = prefill(model, inputs)
        seen = cache.get_seq_length()
        step(model, inputs, said, cache)
        cache.crop(-3)
        assert cache.get_seq_length() == seen + 2
        grown = ref.extend(inputs, said[:, :2])
        ref.close(step(model, grown, said[:, 2:], cache), whole(model, inputs, said)[:, 2:], 2e-5)


@pytest.mark.parametrize("keeps", [(None, 0.1, 0.1), (None, None, 0.1), (0.1, None, None)], ids=str)
@few
def test_crop_cuts_all_layers_or_none(family: str, keeps: Any) -> None:
    """The first layer stores everything and could be cropped, later ones cannot."""
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    with tokenops.attach(model, routed.routed(keeps)):
        cache = prefill(model, inputs)
        before = held(cache)
        with pytest.raises(TokenOpsError, match="crop"):
            cache.crop(-20)
        assert held(cache) == before
        ref.close(step(model, inputs, words(1), cache), whole(model, inputs, words(1)), 2e-5)


@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
@few
def test_rows_move_with_the_cache(family: str, how: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples)
    rows = {"reorder_cache": [3, 1, 1, 0], "batch_select_indices": [2, 0]}.get(how, [0, 0, 1, 1, 2, 2, 3, 3])
    with tokenops.attach(model, routed.routed(KEEPS)):
        cache = prefill(model, inputs)
        getattr(cache, how)(2 if how == "batch_repeat_interleave" else torch.tensor(rows))
        if family == "qwen2_5_vl":
            model.model.rope_deltas = model.model.rope_deltas[rows]
        text = {k: inputs[k][rows] for k in ("input_ids", "attention_mask")}
        got = step(model, text, words(len(rows)), cache)
        for i, row in enumerate(rows):
            ref.close(got[i : i + 1], whole(model, samples[row], words(len(rows))[i : i + 1]), 2e-5)


@few
def test_a_copied_cache_is_its_own(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with tokenops.attach(model, routed.routed(KEEPS)):
        cache = prefill(model, inputs)
        twin = copy.deepcopy(cache)
        first = step(model, inputs, words(4), cache)
        assert torch.equal(step(model, inputs, words(4), twin), first)


@few
def test_an_uneven_cache_needs_its_pipeline(family: str) -> None:
    """Even of one row without filler: layers differ in length. Refused before the cache changes."""
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    with tokenops.attach(model, routed.routed(KEEPS)):
        cache = prefill(model, inputs)
        want = step(model, inputs, words(1), copy.deepcopy(cache))
    before = held(cache)
    with pytest.raises(TokenOpsError, match="detached"):
        step(model, inputs, words(1), cache)
    assert held(cache) == before
    with tokenops.attach(model, ref.prune(0.3)):
        with pytest.raises(TokenOpsError, match="the pipeline that made this cache"):
            step(model, inputs, words(1), cache)
        assert held(cache) == before
    with tokenops.attach(model, routed.routed(KEEPS)):
        assert torch.equal(step(model, inputs, words(1), cache), want)


def test_a_pruned_cache_goes_on_under_a_route() -> None:
    model, inputs = ref.model("llava"), tiny.batch(ref.prompts("llava"))
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        want = step(model, inputs, words(4), copy.deepcopy(cache))
    with tokenops.attach(model, routed.routed(KEEPS)):
        ref.close(step(model, inputs, words(4), cache), want)


def caches(config: Any) -> dict[str, Any]:
    sliding = copy.deepcopy(config)
    sliding.sliding_window, sliding.layer_types = 4, ["sliding_attention"] * config.num_hidden_layers
    return {"static": StaticCache(config, max_cache_len=200), "sliding": DynamicCache(config=sliding)}


@pytest.mark.parametrize("kind", ["static", "sliding", "quantized"])
@few
def test_other_caches_are_refused(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    config = model.config.get_text_config()
    if kind == "quantized":
        cache = object.__new__(QuantizedCache)
        cache.layers, cache.layer_class_to_replicate, cache.offloading = [], None, False
    else:
        cache = caches(config)[kind]
    with torch.no_grad(), tokenops.attach(model, routed.routed(KEEPS)):
        want = model(**inputs).logits
        with pytest.raises(TokenOpsError, match="DynamicCache"):
            model(**inputs, past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 0
        assert torch.equal(model(**inputs).logits, want)


@few
def test_other_backends_are_refused(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with torch.no_grad(), tokenops.attach(model, routed.routed(KEEPS)):
        want = model(**inputs).logits
        model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
        with pytest.raises(TokenOpsError, match="sdpa or eager"):
            model(**inputs)
        model.model.language_model.config._attn_implementation_internal = "sdpa"
        assert torch.equal(model(**inputs).logits, want)


def test_a_cache_whose_call_broke_off_is_refused() -> None:
    m = ref.model("llava")
    inputs = tiny.sample("llava", [0], 1)
    pipeline = Pipeline(layers=Route(feature_norm, 0.5))

    def breaks(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with tokenops.attach(m, pipeline), torch.no_grad():
        cache = m(**inputs, use_cache=True).past_key_values
        more = ref.extend(inputs, torch.tensor([[5]]))
        again = {"input_ids": more["input_ids"][:, -1:], "attention_mask": more["attention_mask"]}
        hook = m.model.language_model.layers[1].mlp.register_forward_pre_hook(breaks)
        with pytest.raises(RuntimeError, match="in the middle"):
            m(**again, past_key_values=cache)
        hook.remove()
        with pytest.raises(TokenOpsError, match="came to its end"):
            m(**again, past_key_values=cache)
