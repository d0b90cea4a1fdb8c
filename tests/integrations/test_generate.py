"""``generate`` with a shortened cache equals recomputing everything at every step without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from integrations import reference as ref
from integrations import tiny

import tokenops

STEPS = 5
OLD = transformers.__version__.startswith("5.17.")


def one_image_each(family: str) -> list[dict[str, Any]]:
    """5.17 itself mixes the images of a prompt up when beams or returned sequences repeat it."""
    return [tiny.sample(family, [i], i, (3 + i, 2 + i)) for i in range(3)] + [tiny.sample(family, [], 3)]


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("backend", ref.BACKENDS)
@pytest.mark.parametrize("family", ref.FAMILIES)
def test_greedy(family: str, backend: str, dtype: torch.dtype) -> None:
    model = ref.model(family, backend, dtype)
    inputs = ref.to(tiny.batch(ref.prompts(family)), dtype)
    with tokenops.attach(model, ref.prune(0.3)):
        out = model.generate(
            **inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        new = out.sequences[:, -STEPS:]
        with torch.no_grad():  # one whole forward over the generated tokens: each predicted by the one before
            logits = model(**ref.extend(inputs, new[:, :-1]), use_cache=False).logits[:, -STEPS:]
    ref.close(torch.stack(out.logits, 1).to(dtype), logits, 2e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_greedy_tokens_step_by_step(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    model.generation_config.eos_token_id = None
    with tokenops.attach(model, ref.prune(0.3)):
        tokens, _ = ref.continue_greedily(model, inputs, STEPS)
        for use_cache in (True, False):
            out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=use_cache)
            assert torch.equal(out[:, -STEPS:], tokens)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_a_batch_generates_what_its_rows_do(family: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    model.generation_config.eos_token_id = None
    with tokenops.attach(model, ref.prune(0.3)):
        together = model.generate(**tiny.batch(samples), max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        for row, sample in enumerate(samples):
            alone = model.generate(**sample, max_new_tokens=STEPS, do_sample=False)[0, -STEPS:]
            assert torch.equal(together[row], alone)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_sampling(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    model.generation_config.eos_token_id = None
    with tokenops.attach(model, ref.prune(0.3)):
        torch.manual_seed(5)
        out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, top_k=0, temperature=2.0)
        torch.manual_seed(5)
        grown = inputs
        for _ in range(STEPS):
            with torch.no_grad():
                logits = model(**grown, use_cache=False).logits[:, -1]
            grown = ref.extend(grown, torch.multinomial((logits / 2.0).softmax(-1), 1))
    assert torch.equal(out, grown["input_ids"])
    with tokenops.attach(model, ref.prune(0.3)):
        greedy, _ = ref.continue_greedily(model, inputs, STEPS)
    assert not torch.equal(out[:, -STEPS:], greedy)


@pytest.mark.parametrize("family", ref.FAMILIES)
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_beams(family: str, how: dict[str, int]) -> None:
    model = ref.model(family)
    samples = one_image_each(family) if OLD else ref.prompts(family)
    inputs = tiny.batch(samples)
    model.generation_config.eos_token_id = None
    run: dict[str, Any] = {**inputs, **how, "max_new_tokens": STEPS, "do_sample": False}
    run |= {"output_scores": True, "return_dict_in_generate": True, "length_penalty": 1.0}
    with tokenops.attach(model, ref.prune(0.3)) as handle:
        out = model.generate(**run)
        assert max(t.k / t.n for t in handle.trace) < 0.35
        times = how.get("num_return_sequences", 1)
        for i, sequence in enumerate(out.sequences):
            own = samples[i // times]
            with torch.no_grad():
                grown = ref.extend(own, sequence[None, -STEPS:])
                scores = model(**grown, use_cache=False).logits[0, -STEPS - 1 : -1].log_softmax(-1)
            total = scores.gather(1, sequence[-STEPS:, None]).sum() / STEPS
            ref.close(out.sequences_scores[i], total)
        uncached = model.generate(**run, use_cache=False)
    assert torch.equal(out.sequences, uncached.sequences)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_returned_sequences(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(one_image_each(family))
    with tokenops.attach(model, ref.prune(0.3)) as handle:
        torch.manual_seed(0)
        out = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert out.shape[0] == 8
    # 5.17 and 5.23 both repeat the rows; each copy keeps what its twin keeps
    chosen = {t.sample: t.index.tolist() for t in handle.trace}
    assert all(chosen[2 * row] == chosen[2 * row + 1] for row in range(3))


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_text_only(family: str) -> None:
    model = ref.model(family)
    inputs = tiny.batch([tiny.sample(family, [], 1), tiny.sample(family, [], 2, (7, 0))])
    plain = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    with tokenops.attach(model, ref.prune(0.3)) as handle:
        assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, do_sample=False), plain)
    assert handle.trace == ()


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_repeated_calls_agree(family: str) -> None:
    model = ref.model(family)
    inputs, other = tiny.batch(ref.prompts(family)), tiny.sample(family, [1], 9)
    with tokenops.attach(model, ref.prune(0.3)):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        model.generate(**other, max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), first)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_inference_mode(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        want = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        with torch.inference_mode():
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), want)


@pytest.mark.parametrize("family", ref.FAMILIES)
def test_assisted_generation(family: str) -> None:
    """Candidates from the prompt's own n-grams are checked in one call and cropped from the cache."""
    model = ref.model(family)
    model.generation_config.eos_token_id = None
    inputs = tiny.sample(family, [0], 1)
    text = tiny.sample(family, [], 2, (6, 0))["input_ids"]
    inputs = ref.extend(inputs, torch.cat([text, text, text], 1))
    run: dict[str, Any] = {**inputs, "max_new_tokens": 8, "do_sample": False}
    with tokenops.attach(model, ref.prune(0.3)):
        want = model.generate(**run)
        assert torch.equal(model.generate(**run, prompt_lookup_num_tokens=3), want)
