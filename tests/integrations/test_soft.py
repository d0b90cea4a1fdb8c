"""The soft mask of training: exact at 0 and 1, differentiable between, with either gate."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import Tensor, nn

import tokenops
from tokenops import Pipeline, Prune, Selection, TokenOpsError
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer

families = pytest.mark.parametrize("family", ref.FAMILIES)
backends = pytest.mark.parametrize("backend", ref.BACKENDS)
gates = pytest.mark.parametrize("gate", ["attention", "multiply"])


class Soft(nn.Module):
    """A gate of one number per feature sum, or a fixed one."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor, *, mask: Tensor) -> Selection:
        gate = self.gate(x, mask)
        return replace(Selection.from_mask(mask & (gate >= 0.5)), gate=gate)


def soft(gate: Any, how: str) -> Pipeline:
    return Pipeline(after_projector=Prune(Soft(gate), gate=how))


def ones(x: Tensor, mask: Tensor) -> Tensor:
    return mask.to(x.dtype)


def alternating(x: Tensor, mask: Tensor) -> Tensor:
    return (torch.arange(x.shape[1]) % 3 == 0).to(x.dtype).expand(mask.shape) * mask


@pytest.mark.parametrize("side", ["left", "right"])
@gates
@backends
@families
def test_a_gate_of_ones_is_the_plain_model(family: str, backend: str, gate: str, side: str) -> None:
    model, inputs = ref.model(family, backend).train(), tiny.batch(ref.prompts(family), side)
    plain = model(**inputs).logits
    with tokenops.attach(model, soft(ones, gate)):
        ref.close(ref.real(inputs, model(**inputs).logits), ref.real(inputs, plain))


@pytest.mark.parametrize("side", ["left", "right"])
@backends
@families
def test_zeros_and_ones_in_attention_are_dropping(family: str, backend: str, side: str) -> None:
    model, inputs = ref.model(family, backend), tiny.batch(ref.prompts(family), side)
    keep = inputs["attention_mask"].bool()
    newline = getattr(model.model, "image_newline", None)
    call = ref.language_arguments(model, inputs)
    for row, at in ref.units(inputs["input_ids"]):
        lines = ref.row_of_patches(call["inputs_embeds"][row], at, newline)
        for i, p in enumerate([p for line, _ in lines for p in line]):
            keep[row, p] = i % 3 == 0
        for line, end in lines:
            if end is not None:
                keep[row, end] = bool(keep[row, line].any())
    want = ref.dense(model, call, keep)
    with torch.no_grad(), tokenops.attach(model, soft(alternating, "attention")):
        got = model(**inputs).logits
    ref.close(got[keep], want[keep])


@families
def test_multiply_scales_the_features(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with ref.Recorder(model) as plain, torch.no_grad():
        model(**inputs)
    half = soft(lambda x, mask: torch.full(mask.shape, 0.5), "multiply")
    want = plain.calls[0]["inputs_embeds"].clone()
    visual = (inputs["input_ids"] == tiny.IMAGE) | (inputs["input_ids"] == tiny.VIDEO)
    newline = getattr(model.model, "image_newline", None)
    if newline is not None:  # line breaks are no visual tokens
        visual &= (want != newline).any(-1)
    want[visual] *= 0.5
    with torch.no_grad():
        expected = model.model.language_model(**plain.calls[0] | {"inputs_embeds": want}).last_hidden_state
        with tokenops.attach(model, half):
            got = model.model(**inputs).last_hidden_state
    ref.close(got, expected, 1e-6)


def exact_norms(model: Any) -> None:
    """The models' own norms round to float32."""
    for module in model.model.language_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(
                nn.functional.rms_norm, normalized_shape=(48,), weight=module.weight, eps=1e-6
            )


@gates
@families
def test_gradients_reach_the_scores_by_finite_differences(family: str, gate: str) -> None:
    model = ref.model(family, dtype=torch.float64).train()
    exact_norms(model)
    inputs = ref.to(tiny.batch(ref.prompts(family)), torch.float64)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    most = max(len(at) for _, at in ref.units(inputs["input_ids"]))
    logits = torch.randn(6, most, dtype=torch.float64).requires_grad_()

    def sigmoid(x: Tensor, mask: Tensor) -> Tensor:
        return logits[:, : x.shape[1]].sigmoid() * mask if len(x) == 6 else mask.to(x.dtype)

    with tokenops.attach(model, soft(sigmoid, gate)):

        def loss() -> Tensor:  # the models' own loss rounds to float32
            out = model(**inputs, use_cache=False).logits
            return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

        (gradient,) = torch.autograd.grad(loss(), logits)
        assert gradient.abs().max() > 1e-3
        strongest = torch.zeros_like(gradient)
        strongest.view(-1)[gradient.abs().argmax()] = 1.0
        for direction in (gradient / gradient.norm(), gradient.sign(), strongest):
            step = 1e-5 * direction
            with torch.no_grad():
                logits += step
                above = loss()
                logits -= 2 * step
                below = loss()
                logits += step
            slope = (gradient * direction).sum()
            torch.testing.assert_close((above - below) / 2e-5, slope, atol=0.0, rtol=1e-5)


@gates
@families
def test_zero_gates_give_finite_gradients(family: str, gate: str) -> None:
    model, inputs = ref.model(family).train(), tiny.batch(ref.prompts(family))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    scale = torch.ones((), requires_grad=True)
    with tokenops.attach(model, soft(lambda x, mask: alternating(x, mask) * scale, gate)):
        model(**inputs, labels=labels).loss.backward()
    assert scale.grad is not None
    assert scale.grad.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def sigmoid_topk(scores: Tensor, k: Tensor, *, mask: Tensor) -> Tensor:
    return scores.sigmoid() * mask


@families
def test_soft_only_while_training(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    scorer = LearnedScorer(48)
    with torch.no_grad():
        for p in scorer.parameters():
            p.normal_(std=0.5)
    relaxed = Pipeline(after_projector=Prune(TopK(scorer, 0.3, sigmoid_topk)))
    hard = Pipeline(after_projector=Prune(TopK(scorer, 0.3)))
    with torch.no_grad():
        with tokenops.attach(model, hard):
            want = model(**inputs).logits
        with tokenops.attach(model, relaxed):
            assert torch.equal(model(**inputs).logits, want)
            model.train()
            assert not torch.allclose(model(**inputs).logits, want, atol=1e-2)
            model.eval()
            assert torch.equal(model(**inputs).logits, want)


@gates
@families
def test_checkpointing_gives_the_same_scorer_gradients(family: str, gate: str) -> None:
    model, inputs = ref.model(family).train(), tiny.batch(ref.prompts(family))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    scorer = LearnedScorer(48)
    pipeline = Pipeline(after_projector=Prune(TopK(scorer, 0.3, sigmoid_topk), gate=gate))

    def gradients() -> list[Tensor]:
        scorer.zero_grad()
        with tokenops.attach(model, pipeline):
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        return [p.grad.clone() for p in scorer.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert len(plain) == 4
    assert any(bool(g.any()) for g in plain)
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-4)


@families
def test_bfloat16(family: str) -> None:
    model = ref.model(family, dtype=torch.bfloat16).train()
    inputs = ref.to(tiny.batch(ref.prompts(family)), torch.bfloat16)
    plain = model(**inputs).logits
    for gate in ("attention", "multiply"):
        with tokenops.attach(model, soft(lambda x, mask: mask.float(), gate)):
            ref.close(ref.real(inputs, model(**inputs).logits), ref.real(inputs, plain), 0.05)


def test_a_gate_in_attention_refuses_a_cached_past() -> None:
    model, inputs = ref.model("llava").train(), tiny.sample("llava", [0], 1)
    with torch.no_grad(), tokenops.attach(model, soft(ones, "attention")):
        cache = model(**tiny.sample("llava", [], 2), use_cache=True).past_key_values
        before = cache.get_seq_length()
        inputs["attention_mask"] = torch.ones(1, before + inputs["input_ids"].shape[1])
        with pytest.raises(TokenOpsError, match="soft masks without a cache"):
            model(**inputs, past_key_values=cache)
        assert cache.get_seq_length() == before


@backends
@families
def test_a_token_at_zero_learns_what_it_would_add(family: str, backend: str) -> None:
    """The slope at 0 and 1 of a gate that takes a gradient, by one-sided differences."""
    model = ref.model(family, backend, dtype=torch.float64).train()
    exact_norms(model)
    inputs = ref.to(tiny.batch(ref.prompts(family)), torch.float64)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= tiny.IMAGE, -100)
    most = max(len(at) for _, at in ref.units(inputs["input_ids"]))
    gates = (torch.arange(6 * most).view(6, most) % 3 == 0).double().requires_grad_()

    def gate(x: Tensor, mask: Tensor) -> Tensor:
        return gates[:, : x.shape[1]] * mask if len(x) == 6 else mask.to(x.dtype)

    with tokenops.attach(model, soft(gate, "attention")):

        def loss() -> Tensor:
            out = model(**inputs, use_cache=False).logits
            return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

        (gradient,) = torch.autograd.grad(loss(), gates)
        dropped = gates == 0
        assert gradient[dropped].abs().max() > 1e-4
        for entries in (dropped, ~dropped):
            strongest = (gradient.abs() * entries).argmax()
            inward = 1e-4 if entries is dropped else -1e-4
            with torch.no_grad():
                here = loss()
                gates.view(-1)[strongest] += inward
                there = loss()
                gates.view(-1)[strongest] -= inward
            slope = float((there - here) / inward)
            assert slope == pytest.approx(float(gradient.view(-1)[strongest]), rel=0.02)
