"""``generate`` through caches whose layers differ in length equals recomputing everything without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, fates, few
from integrations.test_generate import one_image_each
from torch import Tensor

import tokenops
from tokenops import Pipeline
from tokenops.selectors.scorers import last_attention, next_attention

STEPS = 4
OLD = transformers.__version__.startswith("5.17.")
UNEVEN = (0.6, None, 0.2)


def pipelines() -> dict[str, Pipeline]:
    return {
        "skip": routed.routed(UNEVEN),
        "exit": routed.routed((None, 0.5, 0.2), "exit"),
        "hybrid": ref.prune(0.6) | routed.routed((0.5, 0.3, None)),
    }


def scores_without_cache(model: Any, sample: dict[str, Any], said: Tensor) -> Tensor:
    with torch.no_grad():
        grown = ref.extend(sample, said[None])
        return model(**grown, use_cache=False).logits[0, -len(said) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("which", pipelines())
@backends
@few
def test_greedy(family: str, backend: str, which: str) -> None:
    model, inputs = routed.talker(family, backend), routed.batch_of(family)
    with tokenops.attach(model, pipelines()[which]):
        out = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens, logits = ref.continue_greedily(model, inputs, STEPS)
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert len(set(lengths)) > 1
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    assert torch.equal(out.sequences[:, -STEPS:], tokens)
    ref.close(torch.stack(out.logits, 1), logits, 2e-5)


@pytest.mark.parametrize("signal", [last_attention, next_attention], ids=lambda f: f.__name__)
@few
def test_greedy_with_attention_signals(family: str, signal: Any) -> None:
    """The text grows, so the last token does: only the prefill chooses."""
    model, inputs = ref.model(family), routed.batch_of(family)
    run: dict[str, Any] = {**inputs, "max_new_tokens": STEPS, "do_sample": False}
    with tokenops.attach(model, routed.routed((None, 0.5, 0.3), scorer=signal)) as handle:
        model.generate(**run)
        kept = [t.index.tolist() for t in handle.trace]
        with torch.no_grad():
            model(**inputs)
        assert [t.index.tolist() for t in handle.trace] == kept


@few
def test_a_batch_generates_what_its_rows_do(family: str) -> None:
    model, samples = routed.talker(family), ref.prompts(family)
    with tokenops.attach(model, routed.routed(UNEVEN)):
        together = model.generate(**tiny.batch(samples), max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        for row, sample in enumerate(samples):
            alone = model.generate(**sample, max_new_tokens=STEPS, do_sample=False)[0, -STEPS:]
            assert torch.equal(together[row], alone)


@fates
@few
def test_sampling(family: str, fate: str) -> None:
    model, inputs = routed.talker(family), routed.batch_of(family)
    with tokenops.attach(model, routed.routed(UNEVEN, fate)):
        torch.manual_seed(5)
        out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, top_k=0, temperature=2.0)
        torch.manual_seed(5)
        grown = inputs
        for _ in range(STEPS):
            with torch.no_grad():
                logits = model(**grown, use_cache=False).logits[:, -1]
            grown = ref.extend(grown, torch.multinomial((logits / 2.0).softmax(-1), 1))
    assert torch.equal(out, grown["input_ids"])


@pytest.mark.parametrize("which", pipelines())
@few
def test_beams(family: str, which: str) -> None:
    model = routed.talker(family)
    samples = one_image_each(family) if OLD else ref.prompts(family)
    run: dict[str, Any] = {**tiny.batch(samples), "num_beams": 3, "max_new_tokens": STEPS, "do_sample": False}
    run |= {"output_scores": True, "return_dict_in_generate": True, "length_penalty": 1.0}
    with tokenops.attach(model, pipelines()[which]):
        out = model.generate(**run)
        for i, sequence in enumerate(out.sequences):
            scores = scores_without_cache(model, samples[i], sequence[-STEPS:])
            total = scores.gather(1, sequence[-STEPS:, None]).sum() / STEPS
            ref.close(out.sequences_scores[i], total)
        uncached = model.generate(**run, use_cache=False)
    assert torch.equal(out.sequences, uncached.sequences)


@fates
@few
def test_assisted_generation(family: str, fate: str) -> None:
    model = routed.talker(family)
    inputs = tiny.sample(family, [0], 1)
    text = tiny.sample(family, [], 2, (6, 0))["input_ids"]
    inputs = ref.extend(inputs, torch.cat([text, text, text], 1))
    run: dict[str, Any] = {**inputs, "max_new_tokens": 8, "do_sample": False}
    with tokenops.attach(model, routed.routed((None, 0.5, 0.3), fate)):
        want = model.generate(**run)
        assert torch.equal(model.generate(**run, prompt_lookup_num_tokens=3), want)


@few
def test_inference_mode(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    run: dict[str, Any] = {**inputs, "max_new_tokens": 3, "do_sample": False}
    with tokenops.attach(model, routed.routed(UNEVEN)):
        want = model.generate(**run)
        with torch.inference_mode():
            assert torch.equal(model.generate(**run), want)
