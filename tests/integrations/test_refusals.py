"""What would be silently wrong is refused before anything is attached or changed."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from integrations import reference as ref
from integrations import tiny
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import tokenops
from tokenops import Pipeline, Prune, Selection, TokenOpsError
from tokenops.integrations import FAMILIES
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, cls_attention

families = pytest.mark.parametrize("family", ref.FAMILIES)


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {n: dict(vars(m)) for n, m in model.named_modules()}


def unchanged(model: nn.Module, before: dict[str, dict[str, Any]]) -> bool:
    after = state(model)
    return all(
        list(after[n]) == list(before[n]) and all(after[n][k] is v for k, v in before[n].items())
        for n in before
    )


def refuse(model: nn.Module, pipeline: Any, match: str, **options: Any) -> None:
    before = state(model)
    with pytest.raises(TokenOpsError, match=match):
        tokenops.attach(model, pipeline, **options)
    assert unchanged(model, before)


def needs_unknown(x: Tensor, *, mask: Tensor, gaze: Tensor) -> Selection:
    raise AssertionError


def crashes(x: Tensor, *, mask: Tensor) -> Selection:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


class Stage(nn.Module):
    pass


@pytest.mark.parametrize(
    ("pipeline", "match"),
    [
        (lambda: ref.prune(0.5).stages["after_projector"], "a Pipeline"),
        (lambda: Pipeline(after_projector=Stage()), "a Prune stage"),
        (lambda: Pipeline(after_projector=Prune(TopK(LearnedScorer(32), 0.5))), "32"),
        (lambda: Pipeline(after_projector=Prune(TopK(LearnedScorer(48).to("meta"), 0.5))), "meta"),
        (lambda: Pipeline(after_projector=Prune(needs_unknown)), "gaze"),
        (lambda: Pipeline(after_projector=Prune(crashes)), "mat1"),
        (lambda: Pipeline(after_projector=Prune(lambda x, *, mask: mask)), "a Selection"),
        (lambda: Pipeline(after_projector=Prune(lambda x, *, mask: None)), "a Selection"),
        (
            lambda: Pipeline(after_projector=Prune(lambda x, *, mask: Selection.from_mask(mask[:, :1]))),
            "Selection of",
        ),
    ],
    ids=["stage", "not prune", "width", "device", "signal", "crash", "mask", "none", "shape"],
)
@families
def test_a_pipeline_that_does_not_fit(family: str, pipeline: Any, match: str) -> None:
    refuse(ref.model(family), pipeline(), match)


def test_a_signal_the_model_lacks() -> None:
    refuse(
        ref.model("qwen2_5_vl"), Pipeline(after_projector=Prune(TopK(cls_attention, 0.5))), "cls_attention"
    )


def test_models_that_are_not_known() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**tiny.TEXT))
    refuse(
        llama,
        ref.prune(0.5),
        r"known family \(llava, llava_next, qwen2_5_vl\) or family=Family\(name, layout",
    )
    refuse(nn.Linear(2, 2), ref.prune(0.5), "Linear")
    refuse(ref.model("llava"), ref.prune(0.5), "parts of family", family=FAMILIES["qwen2_5_vl"])
    with pytest.raises(TokenOpsError, match="a torch model"):
        tokenops.attach("llava", ref.prune(0.5))  # type: ignore[arg-type]


def test_a_family_of_ones_own() -> None:
    model, inputs = ref.model("llava"), tiny.batch(ref.prompts("llava"))
    with torch.no_grad():
        with tokenops.attach(model, ref.prune(0.3)):
            want = model(**inputs).logits
        model.config.model_type = "mine"
        refuse(model, ref.prune(0.5), "mine")
        with tokenops.attach(model, ref.prune(0.3), family=replace(FAMILIES["llava"], name="mine")):
            assert torch.equal(model(**inputs).logits, want)


def test_data_parallel() -> None:
    model = ref.model("llava")
    refuse(nn.DataParallel(model), ref.prune(0.5), "DataParallel")


def test_attention_windows() -> None:
    """Kept tokens stand closer together than in the sequence."""
    model = ref.model("qwen2_5_vl")
    model.config.text_config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    refuse(model, ref.prune(0.5), "sliding_attention")


class OddLayer(DynamicLayer):
    """Stands for sliding, quantized and other layers of its kind."""


def odd(model: Any) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [OddLayer() for _ in range(3)]
    return cache


def static(model: Any) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=300)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("make", [static, odd])
@families
def test_caches_that_would_be_wrong(family: str, make: Any, use_cache: bool) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    cache = make(model)
    before = copy.deepcopy([vars(layer) for layer in cache.layers])
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        with pytest.raises(TokenOpsError, match="a DynamicCache"):
            model(**inputs, past_key_values=cache, use_cache=use_cache)
        assert str([vars(layer) for layer in cache.layers]) == str(before)
        model(**inputs)


@families
def test_a_static_cache_is_fine_while_nothing_is_dropped(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad():
        plain = model(**inputs, past_key_values=static(model)).logits
        with tokenops.attach(model, ref.prune(1.0)):
            assert torch.equal(model(**inputs, past_key_values=static(model)).logits, plain)


@families
def test_a_static_cache_in_generate(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    with tokenops.attach(model, ref.prune(0.3)), pytest.raises(TokenOpsError, match="a DynamicCache"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation="static", disable_compile=True)


@pytest.mark.skipif(transformers.__version__.startswith("5.17."), reason="5.17 itself loses the images there")
@families
def test_chunked_prefill(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    with tokenops.attach(model, ref.prune(0.3)):
        with pytest.raises(TokenOpsError, match="prefill_chunk_size"):
            model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=7)
        model.generate(**inputs, max_new_tokens=3)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_packed_positions_without_a_mask(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    length = inputs["input_ids"].shape[1]
    del inputs["attention_mask"]
    packed = torch.cat([torch.arange(5), torch.arange(length - 5)])[None]
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        with pytest.raises(TokenOpsError, match="packed"):
            model(**inputs, position_ids=packed)
        model(**inputs)


@families
def test_an_unknown_argument_along_the_tokens(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    extra = torch.zeros(inputs["input_ids"].shape)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        with pytest.raises(TokenOpsError, match="token axis of routing in Family.token_axes"):
            model(**inputs, routing=extra)
        model(**inputs)


def test_a_named_argument_along_the_tokens_is_shortened() -> None:
    model, inputs = ref.model("llava"), tiny.batch(ref.prompts("llava"))
    seen: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda m, a, k: seen.append(k["routing"]), with_kwargs=True)
    known = FAMILIES["llava"]
    mine = replace(known, token_axes={**known.token_axes, "routing": 2})
    routing = torch.arange(inputs["input_ids"].shape[1]).expand(5, 4, -1)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3), family=mine):
        model(**inputs, routing=routing)
    assert seen[0].shape[:2] == (5, 4)
    assert seen[0].shape[2] < routing.shape[2]
    assert seen[0][0, 3, -1] == routing.shape[2] - 1


@families
def test_features_the_attached_model_did_not_compute(family: str) -> None:
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    if "mm_encoder_outputs" not in inspect.signature(model.model.forward).parameters:
        pytest.skip("this transformers encodes inside forward only")
    given = {k: v for k, v in inputs.items() if "pixel" in k or "image_" in k}
    with torch.no_grad():
        encoded = model.get_image_features(**given, return_dict=True)
        with tokenops.attach(model, ref.prune(0.3)), pytest.raises(TokenOpsError, match="unknown features"):
            model(
                **{k: v for k, v in inputs.items() if "pixel" not in k}, mm_encoder_outputs={"image": encoded}
            )
