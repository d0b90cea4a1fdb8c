"""Checkpointed layers and half-precision backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import tiny
from training import kit

from tokenops import TokenOpsError
from tokenops.training import Trainable


def step(t: Trainable, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = t(**batch)["loss"]
    loss.backward()
    return loss.item(), kit.gradients(t)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", ["gradient", "activation"])
@pytest.mark.parametrize("gate", ["attention", "multiply"])
@pytest.mark.parametrize("family", [*kit.FAMILIES, "llava_next"])
def test_checkpointed_gradients_are_the_same(family: str, gate: str, name: str) -> None:
    batch = tiny.batch(kit.rows(family))
    plain = step(kit.trainable(family, gate=gate), batch)
    t = kit.trainable(family, gate=gate)
    getattr(t, f"{name}_checkpointing_enable")()
    layers = t.model.model.language_model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    calls: list[Any] = []
    layers[1].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    loss, gradients = step(t, batch)
    assert len(calls) == 2
    assert loss == plain[0]
    kit.assert_near(gradients, plain[1], rtol=1e-6)


def test_reentrant_checkpointing_is_refused() -> None:
    """Its layers would lose the gradient of a gate that comes in by the mask."""
    t = kit.trainable()
    for enable in (t.gradient_checkpointing_enable, t.activation_checkpointing_enable):
        with pytest.raises(TokenOpsError, match="use_reentrant=False, got True"):
            enable({"use_reentrant": True})
    assert not any(getattr(m, "gradient_checkpointing", False) for m in t.model.modules())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("argument", ["gradient_checkpointing", "activation_checkpointing"])
def test_through_the_trainer(argument: str, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    if argument not in TrainingArguments.__dataclass_fields__:
        pytest.skip("a newer name")
    found = []
    for options in ({}, {argument: True}):
        t = kit.trainable()
        kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=2, learning_rate=1e-2, **options).train()
        found.append(kit.weights(t))
    assert t.model.model.language_model.layers[0].gradient_checkpointing
    kit.assert_near(found[1], found[0], rtol=1e-5)


def low(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("gate", ["attention", "multiply"])
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_a_bfloat16_backbone_and_a_float32_scorer(family: str, gate: str, checkpointed: bool) -> None:
    batch = tiny.batch(kit.rows(family))
    exact = step(kit.trainable(family, gate=gate), batch)
    t = kit.trainable(family, gate=gate, model=tiny.MODELS[family]().bfloat16())
    if checkpointed:
        t.activation_checkpointing_enable()
    loss, gradients = step(t, low(batch))
    assert loss == pytest.approx(exact[0], rel=0.1)
    assert t.handle.decision is not None
    assert t.handle.decision.chosen.gate is not None
    assert t.handle.decision.chosen.gate.dtype == torch.float32
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        if not name.endswith("q_proj.bias"):
            cosine = torch.cosine_similarity(gradient.flatten(), exact[1][name].flatten(), dim=0)
            assert cosine > 0.8, (name, cosine)


def test_everything_in_bfloat16() -> None:
    t = kit.trainable().bfloat16()
    loss, gradients = step(t, low(tiny.batch(kit.rows("llava"))))
    assert loss > 0
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients.values())
