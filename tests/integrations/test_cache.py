"""A shortened cache: second turns, default positions, cropping, reordering, copies, use after removal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from integrations import reference as ref
from integrations import tiny
from torch import Tensor
from transformers import DynamicCache

import tokenops
from tokenops import TokenOpsError
from tokenops.integrations.cache import KeptLayer

STEPS = 4


def prefill(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values


def step(model: Any, inputs: dict[str, Any], tokens: Tensor, cache: Any) -> Tensor:
    """Logits of ``tokens`` behind the prompts, read through the cache, positions left to the model.

    Qwen2.5-VL cannot continue from a mask alone, attached or not: there the caller numbers the tokens.
    """
    mask = ref.extend(inputs, tokens)["attention_mask"]
    given: dict[str, Any] = {}
    if hasattr(model.model, "rope_deltas"):
        places = (mask.cumsum(1) - 1)[:, -tokens.shape[1] :] + model.model.rope_deltas
        given["position_ids"] = places.expand(3, -1, -1)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **given).logits


def whole(model: Any, inputs: dict[str, Any], tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(**ref.extend(inputs, tokens), use_cache=False).logits[:, -tokens.shape[1] :]


def words(rows: int, count: int = 3) -> Tensor:
    return torch.randint(3, 80, (rows, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_second_turn_of_text(family: str, backend: str) -> None:
    model, inputs = ref.model(family, backend), tiny.batch(ref.prompts(family))
    model.generation_config.eos_token_id = None
    run: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True}
    with tokenops.attach(model, ref.prune(0.3)):
        first = model.generate(**inputs, **run)
        said = torch.cat([first.sequences[:, inputs["input_ids"].shape[1] :], words(4)], 1)
        talk = ref.extend(inputs, said)
        text = {k: v for k, v in talk.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
        second = model.generate(**text, **run, past_key_values=first.past_key_values, output_logits=True)
        tokens, logits = ref.continue_greedily(model, talk, STEPS)
    assert torch.equal(second.sequences[:, -STEPS:], tokens)
    ref.close(torch.stack(second.logits, 1), logits, 2e-5)
    assert second.past_key_values.get_seq_length() == second.sequences.shape[1] - 1


@pytest.mark.parametrize("keeps", [(0.3, 0.3), (1.0, 0.3), (0.3, 1.0)], ids=str)
@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_second_turn_with_a_new_image(family: str, backend: str, keeps: tuple[float, float]) -> None:
    """Both turns against the dense reference over everything the language model was given."""
    model = ref.model(family, backend)
    turns = [
        tiny.batch([tiny.sample(family, [a, 1], a), tiny.sample(family, [b], b)]) for a, b in ((0, 3), (3, 1))
    ]
    mask = torch.cat([t["attention_mask"] for t in turns], 1)
    # positions a model would use, written down once so that both ways share them
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    split = turns[0]["input_ids"].shape[1]
    places = [positions[:, :split], positions[:, split:]]
    if family == "qwen2_5_vl":
        places = [torch.stack([p, p // 2, p * 2 % 7]) for p in places]
    calls = [
        ref.language_arguments(model, t | {"position_ids": p}) for t, p in zip(turns, places, strict=True)
    ]
    keep = torch.cat([ref.expected_keep(model, t, k) for t, k in zip(turns, keeps, strict=True)], 1)
    together = {
        "inputs_embeds": torch.cat([c["inputs_embeds"] for c in calls], 1),
        "position_ids": torch.cat([c["position_ids"] for c in calls], -1),
    }
    want = ref.dense(model, together, keep)[:, split:]
    with torch.no_grad():
        with tokenops.attach(model, ref.prune(keeps[0])):
            cache = model(**turns[0], position_ids=places[0], use_cache=True).past_key_values
        later = turns[1] | {"attention_mask": mask, "position_ids": places[1]}
        with tokenops.attach(model, ref.prune(keeps[1])):
            got = model(**later, past_key_values=cache).logits
    ref.close(ref.real(turns[1], got), ref.real(turns[1], want))
    assert cache.get_seq_length() == mask.shape[1]


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_default_positions_count_tokens_seen(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    with tokenops.attach(model, ref.prune(0.3)), torch.no_grad():
        cache = prefill(model, inputs)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        assert cache.layers[0].keys.shape[2] < inputs["input_ids"].shape[1]
        said = words(1)
        for i in range(3):
            want = whole(model, inputs, said[:, : i + 1])[:, -1:]
            prefill(model, inputs)  # Qwen2.5-VL remembers the offset of its last prompt
            ref.close(model(input_ids=said[:, i : i + 1], past_key_values=cache).logits, want)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_several_new_tokens_at_once(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        ref.close(step(model, inputs, words(4, 5), cache), whole(model, inputs, words(4, 5)), 2e-5)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_turn_of_text_before_the_image(family: str) -> None:
    """A plain cache becomes a shortened one."""
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    if family == "qwen2_5_vl":
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    axis = {"input_ids": 1, "mm_token_type_ids": 1, "position_ids": -1}
    with tokenops.attach(model, ref.prune(0.3)), torch.no_grad():
        want = model(**inputs, use_cache=False).logits[:, 2:]
        start = {k: v.narrow(axis[k], 0, 2) for k, v in inputs.items() if k in axis}
        rest = {k: v.narrow(axis[k], 2, v.shape[axis[k]] - 2) if k in axis else v for k, v in inputs.items()}
        cache = model(**start, use_cache=True).past_key_values
        assert not isinstance(cache.layers[0], KeptLayer)
        ref.close(model(**rest, past_key_values=cache).logits, want)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_crop_forgets_the_last_tokens(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    said = words(4, 5)
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        seen = cache.get_seq_length()
        step(model, inputs, said, cache)
        cache.crop(-3)
        assert cache.get_seq_length() == seen + 2
        grown = ref.extend(inputs, said[:, :2])
        ref.close(step(model, grown, said[:, 2:], cache), whole(model, inputs, said)[:, 2:], 2e-5)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_crop_refuses_to_cut_into_dropped_tokens(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.1)):
        cache = prefill(model, inputs)
        before = [layer.keys.clone() for layer in cache.layers]
        with pytest.raises(TokenOpsError, match="crop"):
            cache.crop(-20)
        assert all(torch.equal(layer.keys, k) for layer, k in zip(cache.layers, before, strict=True))
        ref.close(step(model, inputs, words(4), cache), whole(model, inputs, words(4)), 2e-5)


@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_rows_move_with_the_cache(family: str, how: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples)
    rows = {"reorder_cache": [3, 1, 1, 0], "batch_select_indices": [2, 0]}.get(how, [0, 0, 1, 1, 2, 2, 3, 3])
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        getattr(cache, how)(2 if how == "batch_repeat_interleave" else torch.tensor(rows))
        if family == "qwen2_5_vl":  # the model's own memory of positions is one row per prompt
            model.model.rope_deltas = model.model.rope_deltas[rows]
        text = {k: inputs[k][rows] for k in ("input_ids", "attention_mask")}
        got = step(model, text, words(len(rows)), cache)
        for i, row in enumerate(rows):
            alone = whole(model, samples[row], words(len(rows))[i : i + 1])
            ref.close(got[i : i + 1], alone, 2e-5)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_copied_cache_is_its_own(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        twin = copy.deepcopy(cache)
        first = step(model, inputs, words(4), cache)
        assert twin.get_seq_length() == cache.get_seq_length() - 3
        assert torch.equal(step(model, inputs, words(4), twin), first)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_an_even_cache_serves_the_detached_model(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0, 1], 1)
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
        want = whole(model, inputs, words(1))
    ref.close(step(model, inputs, words(1), cache), want, 2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_ragged_cache_refuses_the_detached_model(family: str, side: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family), side)
    with tokenops.attach(model, ref.prune(0.3)):
        cache = prefill(model, inputs)
    with pytest.raises(TokenOpsError, match="detached"):
        step(model, inputs, words(4), cache)
    with tokenops.attach(model, ref.prune(0.3)):
        ref.close(step(model, inputs, words(4), cache), whole(model, inputs, words(4)), 2e-5)


def test_equal_counts_behind_right_padding_refuse_the_detached_model() -> None:
    """No filler in the cache, but the caller's mask cannot be read against it."""
    model = ref.model("llava")
    inputs = tiny.batch([tiny.sample("llava", [0], 1), tiny.sample("llava", [0], 2, (3, 1))], "right")
    counts = torch.tensor([[5], [8]])  # 24 - 11 tokens stay in the first row, 21 - 8 in the second
    kept = ref.prune_by(lambda x, mask: torch.arange(x.shape[1]) < counts[: x.shape[0]])
    with tokenops.attach(model, kept):
        cache = prefill(model, inputs)
        want = whole(model, inputs, words(2))
        ref.close(step(model, inputs, words(2), copy.deepcopy(cache)), want)
    with pytest.raises(TokenOpsError, match="detached"):
        step(model, inputs, words(2), cache)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_the_callers_own_cache_object_is_filled(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    for cache in (DynamicCache(), DynamicCache(config=model.config.get_text_config())):
        with tokenops.attach(model, ref.prune(0.3)):
            with torch.no_grad():
                out = model(**inputs, past_key_values=cache, use_cache=True)
            assert out.past_key_values is cache
            ref.close(step(model, inputs, words(4), cache), whole(model, inputs, words(4)), 2e-5)
        cache.reset()
        # 5.17 zeroes the entries of a plain layer and keeps their number
        empty = not transformers.__version__.startswith("5.17.")
        assert cache.get_seq_length() == (0 if empty else cache.layers[0].keys.shape[2])
