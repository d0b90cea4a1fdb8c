"""Attention ``"tokenops"`` equals sdpa where tokens are real: forward, generate, loss and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from integrations import packed, routed, tiny
from integrations import reference as ref
from integrations.packed import BACKENDS, every, running, slow
from integrations.test_cache import step, words
from integrations.test_routed_training import gradients, labelled
from torch import Tensor

import tokenops

STEPS = 4
few, sides = routed.few, routed.sides


def both(values: Any) -> tuple[Any, Any]:
    plain, packs = (values(backend) for backend in BACKENDS)
    return packs, plain


@every
@sides
@few
def test_logits(family: str, side: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, packs = tiny.batch(ref.prompts(family), side), packed.Packs(monkeypatch)

    def logits(backend: str) -> Tensor:
        with running(which, family, backend) as model, torch.no_grad():
            return ref.real(inputs, model(**inputs).logits)

    ref.close(*both(logits))
    assert len(packs.calls) == 3  # every layer of one model
    assert all(len(set(segments.queries)) > 1 for segments in packs.calls)


@pytest.mark.parametrize("which", ["none", "hybrid"])
@few
def test_half_precision(family: str, which: str) -> None:
    inputs = ref.to(tiny.batch(ref.prompts(family)), torch.bfloat16)

    def logits(backend: str) -> Tensor:
        with running(which, family, backend, torch.bfloat16) as model, torch.no_grad():
            return ref.real(inputs, model(**inputs).logits)

    ref.close(*both(logits), 0.05)


@every
@few
def test_generate(family: str, which: str) -> None:
    inputs = tiny.batch(ref.prompts(family))

    def said(backend: str) -> Any:
        with running(which, family, backend) as model:
            out = model.generate(
                **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            return out.sequences, torch.stack(out.logits, 1)

    (tokens, logits), (want, expected) = both(said)
    assert torch.equal(tokens, want)
    ref.close(logits, expected)


@pytest.mark.parametrize("which", ["none", "prune", "skip"])
def test_beams(which: str) -> None:
    inputs = tiny.batch([tiny.sample("llava", [i], i, (3 + i, 2 + i)) for i in range(3)])

    def said(backend: str) -> Tensor:
        with running(which, "llava", backend) as model:
            return model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, num_beams=3)

    assert torch.equal(*both(said))


@every
@few
def test_a_second_turn(family: str, which: str) -> None:
    """Several queries of each row behind its ragged cache."""
    inputs = tiny.batch(ref.prompts(family))

    def turns(backend: str) -> Tensor:
        with running(which, family, backend) as model:
            with torch.no_grad():
                cache = model(**inputs, use_cache=True).past_key_values
            first = step(model, inputs, words(4), cache)
            grown = ref.extend(inputs, words(4))
            return torch.cat([first, step(model, grown, words(4, 1), cache)], 1)

    ref.close(*both(turns))


def test_a_second_turn_with_padding_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with holes: the second turn is left-padded too."""
    inputs, packs = tiny.batch(ref.prompts("llava")), packed.Packs(monkeypatch)
    more = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    mask = torch.cat([inputs["attention_mask"], more], 1)

    def turns(backend: str) -> Tensor:
        with running("none", "llava", backend) as model, torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
            logits = model(input_ids=words(4), attention_mask=mask, past_key_values=cache).logits
            return logits[more.bool()]

    ref.close(*both(turns))
    assert packs.calls[-1].queries == (1, 3, 2, 3)


def test_text_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked prefill equals prefill at once."""
    inputs = tiny.batch([tiny.sample("llava", [], i, (4 + 2 * i, 3)) for i in range(3)])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with running("none", "llava", "tokenops") as model, torch.no_grad():
        want, cache = model(**inputs).logits, None
        packs = packed.Packs(monkeypatch)
        for start in range(0, ids.shape[1], 3):
            until = min(start + 3, ids.shape[1])
            out = model(input_ids=ids[:, start:until], attention_mask=mask[:, :until], past_key_values=cache)
            cache = out.past_key_values
            here = mask[:, start:until].bool()
            ref.close(out.logits[here], want[:, start:until][here])
    assert any(segments.queries != segments.keys for segments in packs.calls)


@every
@sides
@few
def test_loss_and_gradients(family: str, side: str, which: str) -> None:
    inputs = labelled(family, side)

    def training(backend: str) -> Any:
        with running(which, family, backend) as model:
            loss = model.train()(**inputs).loss
            return loss.detach(), gradients(model, loss, "")

    (loss, grads), (want, expected) = both(training)
    ref.close(loss, want)
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        ref.close(gradient, expected[name], 2e-5)


@pytest.mark.parametrize("which", ["none", "hybrid"])
def test_gradient_checkpointing(which: str) -> None:
    inputs = labelled("llava")
    found = []
    for checkpointing in (False, True):
        with running(which, "llava", "tokenops") as model:
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            found.append(gradients(model, model.train()(**inputs, use_cache=False).loss, "language_model"))
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name])


@pytest.mark.parametrize("which", ["prune", "skip"])
@sides
@few
def test_keeping_everything_is_bit_identical(family: str, side: str, which: str) -> None:
    inputs = tiny.batch(ref.prompts(family), side)
    whole = {"prune": ref.prune(1.0), "skip": routed.routed(1.0)}[which]
    with running("none", family, "tokenops") as model, torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, whole):
            assert torch.equal(model(**inputs).logits, plain)


@few
def test_without_padding_it_is_sdpa_to_the_bit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, packs = tiny.sample(family, [0, 1], 1), packed.Packs(monkeypatch)

    def logits(backend: str) -> Tensor:
        with running("none", family, backend) as model, torch.no_grad():
            return model(**inputs).logits

    assert torch.equal(*both(logits))
    assert not packs.calls


def test_a_row_does_not_see_its_batch() -> None:
    samples = ref.prompts("llava")
    with running("skip", "llava", "tokenops") as model, torch.no_grad():
        together = model(**tiny.batch(samples)).logits
        for row, sample in enumerate(samples):
            alone = model(**sample).logits[0]
            ref.close(together[row, -len(alone) :], alone)


@pytest.mark.parametrize("which", ["none", "prune", "skip"])
def test_the_host_reads_lengths_once_for_equal_layers(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mask for a call; where layers keep different numbers, one for each of them."""
    inputs, packs = tiny.batch(ref.prompts("llava")), packed.Packs(monkeypatch)
    with running(which, "llava", "tokenops") as model, torch.no_grad():
        model(**inputs)
    values = {id(segments) for segments in packs.calls}
    assert len(values) == len({segments.queries for segments in packs.calls})
    assert len(values) == (3 if which == "skip" else 1)


def test_padding_comes_out_as_zeros_and_nothing_else() -> None:
    """What the layers see at padding does not matter, NaN included."""
    inputs = tiny.batch(ref.prompts("llava"))
    with running("none", "llava", "tokenops") as model, torch.no_grad():
        want = model(**inputs).logits
        call = ref.language_arguments(model, inputs)
        call["inputs_embeds"] = call["inputs_embeds"].clone()
        call["inputs_embeds"][~inputs["attention_mask"].bool()] = float("nan")
        hidden = model.model.language_model(**call).last_hidden_state
        got = model.lm_head(hidden)
    assert torch.equal(ref.real(inputs, got), ref.real(inputs, want))


def test_an_encoder_with_padding() -> None:
    """Without causality: every position equals sdpa, queries at padding too."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    config: Any = BertConfig(**small, vocab_size=50)
    config._attn_implementation = "sdpa"
    model = BertModel(config).eval()
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    other = copy.deepcopy(model)
    packed.register_attention()
    other.set_attn_implementation("tokenops")
    with torch.no_grad():
        ref.close(other(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state)


@slow
@pytest.mark.parametrize("which", ["none", "skip"])
def test_compiled(which: str) -> None:
    torch._dynamo.reset()
    inputs = tiny.batch(ref.prompts("llava"))
    with running(which, "llava", "tokenops") as model, torch.no_grad():
        want = model(**inputs).logits
        compiled = torch.compile(model, backend="aot_eager", dynamic=False)
        ref.close(ref.real(inputs, compiled(**inputs).logits), ref.real(inputs, want))
    torch._dynamo.reset()


@pytest.mark.parametrize("padded", [False, True])
def test_compiled_in_one_graph(padded: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    packed.register_attention()
    torch._dynamo.reset()
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config: Any = LlamaConfig(**small, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
    config._attn_implementation = "tokenops"
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 2 + [1] * 5])
    call = {"input_ids": ids, "attention_mask": mask if padded else None}
    with torch.no_grad():
        want = model(**call).logits
        got = torch.compile(model, backend="eager", fullgraph=True)(**call).logits
    torch._dynamo.reset()
    ref.close(got[mask.bool()], want[mask.bool()])
