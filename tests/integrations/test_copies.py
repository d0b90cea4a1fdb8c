"""Deep copies of attached models, and models somebody else wrapped first."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import nn

import tokenops
from tokenops import Pipeline, Prune
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, cls_attention

families = pytest.mark.parametrize("family", ref.FAMILIES)


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def pipelines(family: str) -> list[Pipeline]:
    """One without and, where the tower has a CLS token, one with the probe."""
    by_cls = Pipeline(after_projector=Prune(TopK(cls_attention, 0.3)))
    return [ref.prune(0.3), by_cls][: 1 if family == "qwen2_5_vl" else 2]


@families
@pytest.mark.parametrize("part", ["language_model", "projector"])
def test_a_copy_runs_its_own_weights(family: str, part: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    plain = run(model, inputs)
    for pipeline in pipelines(family):
        with tokenops.attach(model, pipeline) as handle:
            want = run(model, inputs)
            kept = [t.index.tolist() for t in handle.trace]
            twin = copy.deepcopy(model)
            assert torch.equal(run(twin, inputs), want)
            changed = twin.model.language_model.layers[0] if part == "language_model" else projector(twin)
            with torch.no_grad():
                for p in changed.parameters():
                    p.mul_(torch.linspace(0.5, 1.5, p.numel()).view(p.shape))
            assert not torch.equal(run(twin, inputs), want)
            assert [t.index.tolist() for t in handle.trace] == kept
            assert torch.equal(run(model, inputs), want)
        assert torch.equal(run(model, inputs), plain)


def projector(model: Any) -> nn.Module:
    return model.model.visual.merger if hasattr(model.model, "visual") else model.model.multi_modal_projector


@families
def test_a_copy_keeps_its_pipeline_when_the_original_loses_it(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        want, twin = run(model, inputs), copy.deepcopy(model)
    assert torch.equal(run(twin, inputs), want)
    assert not torch.equal(run(model, inputs), want)


@families
def test_copying_after_a_forward_with_gradients(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, Pipeline(after_projector=Prune(TopK(LearnedScorer(48), 0.5)))):
        want = model(**inputs).logits
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, want)


def accelerate_style(module: nn.Module, log: list[str], name: str) -> Any:
    """The shape of accelerate's ``add_hook_to_module``."""
    module._old_forward = module.forward

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        log.append(name)
        return module._old_forward(*args, **kwargs)

    forward = functools.update_wrapper(functools.partial(new_forward, module), module.forward)
    module.forward = forward
    return forward


@families
def test_an_earlier_instance_forward_is_called_and_restored(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        want = run(model, inputs)
    log: list[str] = []
    hooked = [model.model, model.model.language_model]
    hooks = [accelerate_style(m, log, type(m).__name__) for m in hooked]
    with tokenops.attach(model, ref.prune(0.3)):
        assert torch.equal(run(model, inputs), want)
        assert log == [type(m).__name__ for m in hooked]
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for p in model.model.language_model.parameters():
                p.zero_()
        assert torch.equal(run(twin, inputs), want)
    assert [m.__dict__["forward"] for m in hooked] == hooks


def test_a_deep_copy_has_a_handle_of_its_own() -> None:
    from tokenops.integrations import attached

    model = tiny.llava()
    assert attached(model) is None
    with tokenops.attach(model, tokenops.recipes.random(0.5)) as handle:
        twin = copy.deepcopy(model)
        own = attached(twin)
        assert own is not None
        assert own.attached
        own.remove()
        assert attached(twin) is None
        assert handle.attached
        assert "forward" not in vars(twin.model)
        assert "forward" in vars(model.model)
    assert not handle.attached


def test_a_copied_handle_removes_from_the_copy() -> None:
    from tokenops.integrations import attached

    model = tiny.llava()
    with tokenops.attach(model, tokenops.recipes.cls_attention(0.5)) as handle:
        twin, twin_handle = copy.deepcopy((model, handle))
        twin_handle.remove()
        assert attached(twin) is None
        assert attached(model) is not None
