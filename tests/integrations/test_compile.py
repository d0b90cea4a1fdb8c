"""Under ``torch.compile``, attached before or after, on a cold or a warm model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny

import tokenops
from tokenops import Pipeline, Prune
from tokenops.selectors import TopK
from tokenops.selectors.scorers import cls_attention

slow = pytest.mark.slow
families = pytest.mark.parametrize(
    "family", ["llava", pytest.param("llava_next", marks=slow), pytest.param("qwen2_5_vl", marks=slow)]
)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_of(module: Any) -> Any:
    return torch.compile(module, backend="aot_eager", dynamic=False)


def calls(family: str) -> list[dict[str, Any]]:
    """Two shapes, the first one twice."""
    one = tiny.batch([tiny.sample(family, [0], 1), tiny.sample(family, [3], 2)])
    other = tiny.sample(family, [1, 3], 3)
    return [one, other, one]


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def compiled_equals_eager(family: str, pipeline: Pipeline) -> None:
    model = ref.model(family)
    with tokenops.attach(model, pipeline) as handle:
        want = [(logits(model, c), [t.index.tolist() for t in handle.trace]) for c in calls(family)]
        compiled = compiled_of(model)
        for inputs, (expected, kept) in zip(calls(family), want, strict=True):
            ref.close(logits(compiled, inputs), expected)
            assert [t.index.tolist() for t in handle.trace] == kept


@families
def test_compiling_the_attached_model(family: str) -> None:
    compiled_equals_eager(family, ref.prune(0.3))


@slow
@families
def test_attaching_to_a_warm_compiled_model(family: str) -> None:
    model = ref.model(family)
    plain = [logits(model, c) for c in calls(family)]
    with tokenops.attach(model, ref.prune(0.3)):
        want = [logits(model, c) for c in calls(family)]
    compiled = compiled_of(model)
    for inputs, expected in zip(calls(family), plain, strict=True):
        ref.close(logits(compiled, inputs), expected)
    with tokenops.attach(compiled, ref.prune(0.3)):
        for inputs, expected in zip(calls(family), want, strict=True):
            ref.close(logits(compiled, inputs), expected)
    for inputs, expected in zip(calls(family), plain, strict=True):
        ref.close(logits(compiled, inputs), expected)


@slow
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_probe_in_a_compiled_model(family: str) -> None:
    compiled_equals_eager(family, Pipeline(after_projector=Prune(TopK(cls_attention, 0.3))))


@slow
@families
def test_generate_with_a_compiled_language_model(family: str) -> None:
    model = ref.model(family)
    inputs = calls(family)[0]
    with tokenops.attach(model, ref.prune(0.3)):
        want = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        model.forward = compiled_of(model.forward)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), want)
