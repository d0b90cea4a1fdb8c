"""Attaching and removing: nothing left behind, nothing half done, copies and other wrappers respected."""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import nn

import tokenops
from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, cls_attention

families = pytest.mark.parametrize("family", ref.FAMILIES)


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module, in order, but for what transformers itself keeps of a forward."""
    own = {"rope_deltas", "_output_capturing_hooks_installed"}
    return {n: {k: v for k, v in vars(m).items() if k not in own} for n, m in model.named_modules()}


def assert_unchanged(model: nn.Module, before: dict[str, dict[str, Any]]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, attributes in before.items():
        assert list(after[name]) == list(attributes), name
        for key, value in attributes.items():
            same = after[name][key]
            assert same is value or (isinstance(value, int | float | str) and same == value), (name, key)


def pipelines(family: str) -> list[Pipeline]:
    found = [ref.prune(0.3)]
    if family != "qwen2_5_vl":
        found.append(Pipeline(after_projector=Prune(TopK(cls_attention, 0.3))))
    return found


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@families
def test_removal_leaves_no_trace(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    run(model, inputs)
    for pipeline in pipelines(family):
        before = snapshot(model)
        handle = tokenops.attach(model, pipeline)
        handle.remove()
        assert_unchanged(model, before)
        handle.remove()
        assert_unchanged(model, before)


@families
def test_names_and_signatures_stay(family: str) -> None:
    model = ref.model(family)
    modules = [model, model.model, model.model.language_model]
    names = list(model.state_dict())
    signatures = [inspect.signature(m.forward) for m in modules]
    features = inspect.signature(model.get_image_features), inspect.signature(model.model.get_image_features)
    parameters = [n for n, _ in model.named_parameters()]
    for pipeline in [*pipelines(family), Pipeline(after_projector=Prune(TopK(LearnedScorer(48), 0.5)))]:
        with tokenops.attach(model, pipeline):
            assert list(model.state_dict()) == names
            assert [n for n, _ in model.named_parameters()] == parameters
            assert [inspect.signature(m.forward) for m in modules] == signatures
            assert inspect.signature(model.model.get_image_features) == features[1]
            assert model.model.forward.__doc__ == type(model.model).forward.__doc__


@families
@pytest.mark.parametrize("where", ["base", "language", "features"])
def test_a_later_wrapper_makes_removal_refuse(family: str, where: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    before = snapshot(model)
    handle = tokenops.attach(model, ref.prune(0.3))
    want = run(model, inputs)
    module = {"language": model.model.language_model}.get(where, model.model)
    method = "get_image_features" if where == "features" else "forward"
    ours = module.__dict__[method]

    @functools.wraps(ours)
    def later(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    setattr(module, method, MethodType(later, module))
    attached = snapshot(model)
    for _ in range(2):
        with pytest.raises(TokenOpsError, match="remove: .*later wrapper"):
            handle.remove()
        assert_unchanged(model, attached)
        assert torch.equal(run(model, inputs), want)
    object.__setattr__(module, method, ours)
    handle.remove()
    assert_unchanged(model, before)


@families
def test_attaching_twice_refuses(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    handle = tokenops.attach(model, ref.prune(0.3))
    want = run(model, inputs)
    for target in (model, model.model):
        with pytest.raises(TokenOpsError, match="attached already"):
            tokenops.attach(target, ref.prune(0.5))
    assert torch.equal(run(model, inputs), want)
    handle.remove()
    tokenops.attach(model, ref.prune(0.5)).remove()


class Boom(Exception):
    pass


@families
@pytest.mark.parametrize("where", ["layer", "vision", "selector", "head"])
def test_an_exception_inside_leaves_the_model_usable(family: str, where: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    alive = [True]
    module = {
        "layer": model.model.language_model.layers[1],
        "head": model.lm_head,
        "vision": getattr(model.model, "visual", None) or model.model.vision_tower,
    }.get(where)

    def choose(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if where == "selector" and not alive[0]:
            raise Boom
        return torch.arange(x.shape[1]) % 2 == 0

    def boom(*_: Any) -> None:
        if not alive[0]:
            raise Boom

    hook = None if module is None else module.register_forward_pre_hook(boom)
    plain = run(model, inputs)
    before = snapshot(model)
    with tokenops.attach(model, ref.prune_by(choose)):
        want = run(model, inputs)
        text = tiny.sample(family, [], 3)
        for call in (lambda: run(model, inputs), lambda: model.generate(**inputs, max_new_tokens=2)):
            alive[0] = False
            with pytest.raises(Boom):
                call()
            alive[0] = True
            run(model, text)
            assert torch.equal(run(model, inputs), want)
    assert_unchanged(model, before)
    assert torch.equal(run(model, inputs), plain)
    if hook is not None:
        hook.remove()


@families
def test_with_removes_after_an_exception(family: str) -> None:
    model = ref.model(family)
    before = snapshot(model)
    with pytest.raises(Boom), tokenops.attach(model, ref.prune(0.3)):
        raise Boom
    assert_unchanged(model, before)


@families
def test_the_base_model_alone(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        want = run(model, inputs)
    with torch.no_grad(), tokenops.attach(model.model, ref.prune(0.3)) as handle:
        hidden = model.model(**inputs).last_hidden_state
        assert len(handle.trace) == 6
        assert torch.equal(model.lm_head(hidden), want)
        assert torch.equal(run(model, inputs), want)


@families
def test_inside_a_wrapper_with_get_base_model(family: str) -> None:
    class Adapted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def get_base_model(self) -> nn.Module:
            return self.inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with tokenops.attach(model, ref.prune(0.3)):
        want = run(model, inputs)
    with tokenops.attach(Adapted(model), ref.prune(0.3)):
        assert torch.equal(run(Adapted(model), inputs), want)


@families
def test_repr_tells_whether_it_is_attached(family: str) -> None:
    handle = tokenops.attach(ref.model(family), ref.prune(0.3))
    assert repr(handle).endswith("attached)")
    handle.remove()
    assert repr(handle).endswith("removed)")


def test_the_pipeline_is_left_in_its_mode() -> None:
    pipeline = ref.prune(0.3).train()
    before = [(n, m.training) for n, m in pipeline.named_modules()]
    with tokenops.attach(ref.model("llava"), pipeline):
        assert [(n, m.training) for n, m in pipeline.named_modules()] == before
