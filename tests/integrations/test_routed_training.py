"""Training through routed layers: losses, gradients, checkpointing, a soft stage before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, fates, few
from integrations.test_soft import Soft, sigmoid_topk
from torch import Tensor, nn

import tokenops
from tokenops import Pipeline, Prune, Selection
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, last_attention, next_attention

KEEPS = (0.6, None, 0.3)
gates = pytest.mark.parametrize("gate", ["attention", "multiply"])


def labelled(family: str, side: str = "left") -> dict[str, Any]:
    inputs = routed.batch_of(family, side)
    real = inputs["attention_mask"].bool()
    # what padding predicts is nobody's business
    hidden = (inputs["input_ids"] >= tiny.IMAGE) | ~real | ~real.roll(1, 1)
    return inputs | {"labels": inputs["input_ids"].masked_fill(hidden, -100)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def gradients(model: Any, loss: Tensor, names: str = "language_model") -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if names in n and p.grad is not None}


@fates
@few
def test_loss_and_gradients_are_the_references(family: str, fate: str) -> None:
    """Weights of all layers, and the embeddings of text and image tokens."""
    model, inputs = ref.model(family), labelled(family)
    call = ref.language_arguments(model, {k: v for k, v in inputs.items() if k != "labels"})
    leaf = call["inputs_embeds"].detach().clone().requires_grad_()
    with torch.no_grad():
        units = routed.unit_lines(model, call, inputs["input_ids"])
    mask = inputs["attention_mask"].bool()
    want = routed.dense(model, call | {"inputs_embeds": leaf}, units, mask, KEEPS, fate)
    loss = cross_entropy(want.logits, inputs["labels"])
    expected = gradients(model, loss)
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["inputs_embeds"].retain_grad()
        seen.append(kwargs["inputs_embeds"])

    with tokenops.attach(model, routed.routed(KEEPS, fate)):
        hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
        out = model(**inputs, use_cache=False)
        got = gradients(model, out.loss)
        hook.remove()
    ref.close(out.loss, loss)
    assert seen[0].grad is not None
    assert leaf.grad is not None
    scale = float(leaf.grad.abs().max())
    torch.testing.assert_close(seen[0].grad[mask], leaf.grad[mask], atol=1e-5 * scale, rtol=1e-4)
    got = {n: g for n, g in got.items() if n in expected and "embed_tokens" not in n}
    assert len(got) > 20
    for name, value in got.items():
        top = max(1e-6, float(expected[name].abs().max()))
        torch.testing.assert_close(value, expected[name], atol=2e-5 * top, rtol=1e-4)


SIGNALS = {"direction": routed.direction, "last": last_attention, "next": next_attention}


@pytest.mark.parametrize(
    "reentrant", [False, pytest.param(True, marks=routed.slow)], ids=["new", "reentrant"]
)
@pytest.mark.parametrize("signal", SIGNALS)
@fates
@few
def test_checkpointing_gives_the_same_gradients(family: str, fate: str, signal: str, reentrant: bool) -> None:
    """Layers before an exit, and layers in between that run everything, are recomputed as they were."""
    model, inputs = ref.model(family).train(), labelled(family)
    pipeline = routed.routed((None, 0.6, None) if fate == "exit" else (None, 0.6, 0.3), fate, SIGNALS[signal])
    with tokenops.attach(model, pipeline):
        plain = gradients(model, model(**inputs, use_cache=False).loss)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        out = model(**inputs)
        recomputed = gradients(model, out.loss)
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        top = max(1e-6, float(value.abs().max()))
        torch.testing.assert_close(recomputed[name], value, atol=1e-6 * top, rtol=1e-5)


@few
def test_noise_is_drawn_once_under_checkpointing(family: str) -> None:
    model, inputs = ref.model(family).train(), labelled(family)

    def noise(x: Tensor) -> Tensor:
        return torch.rand(x.shape[:2])

    with tokenops.attach(model, routed.routed(KEEPS, scorer=noise)):
        torch.manual_seed(0)
        plain = gradients(model, model(**inputs, use_cache=False).loss)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        again = gradients(model, model(**inputs, use_cache=False).loss)
    for name, value in plain.items():
        top = max(1e-6, float(value.abs().max()))
        torch.testing.assert_close(again[name], value, atol=1e-6 * top, rtol=1e-5)


def alternating(x: Tensor, mask: Tensor) -> Tensor:
    return (torch.arange(x.shape[1]) % 2 == 0).to(x.dtype).expand(mask.shape) * mask


@fates
@backends
@few
def test_a_gate_of_zeros_and_ones_is_the_hard_hybrid(family: str, backend: str, fate: str) -> None:
    """Exact at both ends: the same tokens run in every layer, the same number of them."""
    model, inputs = ref.model(family, backend), routed.batch_of(family)
    hard = ref.prune_by(lambda x, mask: alternating(x, mask) > 0)
    soft = Pipeline(after_projector=Prune(Soft(alternating), gate="attention"))
    with torch.no_grad():
        with tokenops.attach(model, hard | routed.routed(KEEPS, fate)) as handle:
            want, kept = model(**inputs).logits, handle.tokens_per_layer
        with tokenops.attach(model, soft | routed.routed(KEEPS, fate)) as handle:
            got = model(**inputs).logits
            per_layer = handle.tokens_per_layer
    there = ref.real(inputs, inputs["input_ids"]) < tiny.IMAGE
    if family != "llava_next":  # a line break stays with its line, softly it always does
        ref.close(ref.real(inputs, got)[there], ref.real(inputs, want)[there])
    assert per_layer[0] == kept[0]
    assert per_layer[2] == kept[2]


@gates
@fates
@few
def test_soft_training_with_a_route(family: str, fate: str, gate: str) -> None:
    """Gradients reach the scorer of the stage before, finite and the same under checkpointing."""
    model, inputs = ref.model(family).train(), labelled(family)
    torch.manual_seed(0)
    scorer = LearnedScorer(48)
    before = Pipeline(after_projector=Prune(TopK(scorer, 0.5, sigmoid_topk), gate=gate))

    def scorer_gradients() -> list[Tensor]:
        scorer.zero_grad()
        with tokenops.attach(model, before | routed.routed(KEEPS, fate)) as handle:
            model(**inputs, use_cache=False).loss.backward()
            counted = [t.k for t in handle.trace if t.layer == 2]
            kept = [t.k for t in handle.trace if t.layer is None]
        assert counted == [max(1, int(0.3 * k + 1e-6)) for k in kept]
        return [p.grad.clone() for p in scorer.parameters() if p.grad is not None]

    plain = scorer_gradients()
    assert len(plain) == 4
    assert all(bool(g.isfinite().all()) for g in plain)
    assert any(bool(g.any()) for g in plain)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for a, b in zip(scorer_gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-4)


@gates
def test_a_gate_of_ones_with_a_route_is_the_route(gate: str) -> None:
    model, inputs = ref.model("llava"), routed.batch_of("llava")
    ones = Pipeline(after_projector=Prune(Soft(lambda x, mask: mask.to(x.dtype)), gate=gate))
    with torch.no_grad():
        with tokenops.attach(model, routed.routed(KEEPS)):
            want = model(**inputs).logits
        with tokenops.attach(model, ones | routed.routed(KEEPS)):
            ref.close(ref.real(inputs, model(**inputs).logits), ref.real(inputs, want))


def test_gradients_of_the_gate_by_finite_differences() -> None:
    model, inputs = ref.model("llava", dtype=torch.float64), tiny.sample("llava", [0], 1)
    inputs = ref.to(inputs, torch.float64)
    logits = torch.randn(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()

    def sigmoid(x: Tensor, *, mask: Tensor) -> Selection:
        gate = logits.sigmoid() if x.shape[1] == 16 else mask.to(x.dtype)
        return replace(Selection.from_mask(mask & (gate > 0.5)), gate=gate)

    pipeline = Pipeline(after_projector=Prune(sigmoid)) | routed.routed(KEEPS)
    with tokenops.attach(model, pipeline):

        def value() -> Tensor:
            return model(**inputs, use_cache=False).logits[0, -1, :8].square().sum()

        (gradient,) = torch.autograd.grad(value(), logits)
        step = 1e-5 * gradient / gradient.norm()
        with torch.no_grad():
            logits += step
            above = value()
            logits -= 2 * step
            below = value()
    # the models' own norms round to float32
    torch.testing.assert_close((above - below) / 2e-5, gradient.norm(), rtol=2e-2, atol=0.0)
