"""What calls must not share or mistake: threads, layers, optional signals, lonely placeholders."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from integrations import tiny
from torch import Tensor

import tokenops
from tokenops import Pipeline, Prune, TokenOpsError, recipes
from tokenops.integrations.masks import reduce_mask
from tokenops.selectors import TopK
from tokenops.tokenmap import Selection

families = pytest.mark.parametrize("family", list(tiny.MODELS))


@families
def test_threads_do_not_see_each_others_calls(family: str) -> None:
    model = tiny.MODELS[family]()
    inputs = [tiny.sample(family, [0, 1], 1), tiny.sample(family, [3], 2)]
    wrong: list[int] = []
    with tokenops.attach(model, recipes.feature_norm(0.3)) as handle, torch.no_grad():
        alone = [model(**each).logits for each in inputs]
        kept = [len(trace) for trace in ([0, 0], [0])]

        def work(number: int) -> None:
            for _ in range(10):
                with torch.no_grad():
                    out = model(**inputs[number]).logits
                if not torch.allclose(out, alone[number], atol=1e-4) or len(handle.trace) != kept[number]:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_features_of_another_layer_than_the_probed_one_are_refused(family: str) -> None:
    model, inputs = tiny.MODELS[family](), tiny.sample(family, [0], 1)
    with torch.no_grad(), tokenops.attach(model, recipes.cls_attention(0.3)) as handle:
        model(**inputs, vision_feature_layer=-2)
        before = handle.trace[0].scores
        with pytest.raises(TokenOpsError, match="vision_feature_layer -2, as when attached, got -1"):
            model(**inputs, vision_feature_layer=-1)
        model(**inputs)
        assert torch.equal(before, handle.trace[0].scores)


@families
def test_an_optional_signal_is_given_where_the_model_has_it(family: str) -> None:
    seen: list[bool] = []

    def scorer(x: Tensor, *, cls_attention: Tensor | None = None) -> Tensor:
        seen.append(cls_attention is not None)
        return x.float().norm(dim=-1) if cls_attention is None else cls_attention

    model = tiny.MODELS[family]()
    with torch.no_grad(), tokenops.attach(model, Pipeline(after_projector=Prune(TopK(scorer, 0.3)))):
        model(**tiny.sample(family, [0], 1))
    assert seen == [family != "qwen2_5_vl"] * 2


@families
def test_placeholders_without_features_are_refused(family: str) -> None:
    model, inputs = tiny.MODELS[family](), tiny.sample(family, [0], 1)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), tokenops.attach(model, recipes.random(0.3)):
        with pytest.raises(TokenOpsError, match="placeholders alone"):
            model(**words)
        model(**inputs)


@families
def test_losing_every_token_is_refused(family: str) -> None:
    def nothing(x: Tensor, *, mask: Tensor) -> Selection:
        return Selection.from_mask(torch.zeros_like(mask))

    model, inputs = tiny.MODELS[family](), tiny.sample(family, [0], 1)
    ids = inputs["input_ids"]
    placeholders = (ids == tiny.IMAGE)[0]
    inputs = {k: v[:, placeholders] if v.shape == ids.shape else v for k, v in inputs.items()}
    with (
        torch.no_grad(),
        tokenops.attach(model, Pipeline(after_projector=Prune(nothing))),
        pytest.raises(TokenOpsError, match="at least one token left"),
    ):
        model(**inputs)


def test_other_attention_backends_are_refused_once_tokens_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.llava(), tiny.sample("llava", [0], 1)
    with torch.no_grad(), tokenops.attach(model, recipes.random(0.3)):
        monkeypatch.setattr(
            model.model.language_model.config, "_attn_implementation_internal", "flash_attention_2"
        )
        with pytest.raises(TokenOpsError, match="sdpa or eager attention, got 'flash_attention_2'"):
            model(**inputs)


@pytest.mark.parametrize("additive", [False, True])
def test_filler_queries_see_themselves_and_nobody_sees_them(additive: bool) -> None:
    chosen = Selection.from_mask(torch.tensor([[True, True, True, True], [False, True, False, True]]))
    mask: Any = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 1, 4, 4)
    if additive:
        mask = torch.zeros(2, 1, 4, 4).masked_fill(~mask, torch.finfo(torch.float32).min)
    out = reduce_mask(mask, chosen, torch.empty(2, 0, dtype=torch.long), 0, 0)
    shown = out if out.dtype == torch.bool else out == 0
    assert shown[1, 0, :2].tolist() == [[True, False, False, False], [False, True, True, False]]
    assert shown[1, 0, 2:].tolist() == [[False, False, True, False], [False, False, True, True]]
    assert torch.equal(shown[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())
