"""Scorers that look at attention: the same choice as from the maps an eager model returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.routed import backends, families, fates, sides
from torch import Tensor

import tokenops
from tokenops.routers import LowRankAttention
from tokenops.selectors.scorers import last_attention, next_attention

LAST: routed.Keeps = (None, 0.5, 0.3)
EVERY: routed.Keeps = (0.6, 0.5, 0.3)
SIGNALS: dict[str, tuple[routed.Keeps, Any, Any]] = {
    "last": (LAST, last_attention, routed.by_last_attention),
    "next": (EVERY, next_attention, routed.by_next_attention),
}


@pytest.mark.parametrize("signal", SIGNALS)
@fates
@sides
@backends
@families
def test_attention_of_the_last_token(family: str, backend: str, side: str, fate: str, signal: str) -> None:
    keeps, scorer, score = SIGNALS[signal]
    routed.compare(ref.model(family, backend), routed.batch_of(family, side), keeps, fate, scorer, score)


@pytest.mark.parametrize("keeps", [(None, 0.4, None), (0.4, None, 0.3), (None, None, 0.5)], ids=str)
@fates
@families
def test_next_attention_where_some_layers_run_everything(family: str, fate: str, keeps: Any) -> None:
    routed.compare(
        ref.model(family), routed.batch_of(family), keeps, fate, next_attention, routed.by_next_attention
    )


@backends
@families
def test_the_numbers_are_those_of_the_models_own_maps(family: str, backend: str) -> None:
    """Layer 1 sees the map of layer 0, where everything still runs."""
    eager, inputs = ref.model(family, "eager"), routed.batch_of(family)
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
    seen: dict[str, Tensor] = {}

    def last(x: Tensor, *, last_attention: Tensor) -> Tensor:
        seen["last"] = last_attention
        return last_attention

    def following(x: Tensor, *, next_attention: Tensor) -> Tensor:
        seen["next"] = next_attention
        return next_attention

    mask = inputs["attention_mask"].bool()
    for scorer, layer in ((last, 0), (following, 1)):
        with (
            torch.no_grad(),
            tokenops.attach(
                ref.model(family, backend), routed.routed((None, 0.3, None), scorer=scorer)
            ) as handle,
        ):
            handle.model(**inputs)
        want = maps[layer][:, :, -1].mean(1)
        ref.close(seen[scorer.__name__ if scorer is last else "next"][mask], want[mask], 1e-6)


@fates
@families
def test_a_row_alone_chooses_the_same(family: str, fate: str) -> None:
    model, samples = ref.model(family), ref.prompts(family)
    inputs = tiny.batch(samples, "right")
    for keeps, scorer, _ in SIGNALS.values():
        with torch.no_grad(), tokenops.attach(model, routed.routed(keeps, fate, scorer)):
            together = model(**inputs).logits
            for row, sample in enumerate(samples):
                own = together[row][inputs["attention_mask"][row].bool()]
                ref.close(own, model(**sample).logits[0], 2e-5)


def low_rank(model: Any, softmax: str, rank: int) -> dict[int, LowRankAttention]:
    made: dict[int, LowRankAttention] = {}
    sizes: dict[str, Any] = {"rank": rank, "heads": 4, "kv_heads": 2}
    for number, layer in enumerate(model.model.language_model.layers):
        q, k = layer.self_attn.q_proj, layer.self_attn.k_proj
        made[number] = LowRankAttention.from_weights(
            q.weight, k.weight, bias_q=q.bias, bias_k=k.bias, softmax=softmax, **sizes
        )
    return made


def by_full_attention(visual: Tensor) -> Any:
    """ALVTS' teacher: mean over visual rows times mean over text rows of the layer's own map."""

    def score(layer: routed.Layer) -> Tensor:
        weights = layer.attend(layer.alive).mean(1)
        length = weights.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).tril()
        out = torch.zeros(visual.shape)
        for i in range(len(visual)):
            factors = []
            for kind in (visual[i], ~visual[i]):
                rows = kind & layer.alive[i]
                mean = weights[i, rows].sum(0) / max(1, int(rows.sum()))
                anyone = (later & rows[:, None]).any(0)
                factors.append(torch.where(anyone, mean, 1 / layer.alive[i].sum()))
            out[i] = factors[0] * factors[1]
        return out

    return score


@fates
@sides
@families
def test_low_rank_attention_of_full_rank_is_the_teacher(family: str, side: str, fate: str) -> None:
    """With RoPE, per head and at full rank: its choice in every layer is that of the layer's own maps."""
    model, inputs = ref.model(family), routed.batch_of(family, side)
    visual = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    call = ref.language_arguments(model, inputs)
    for row, lines in routed.unit_lines(model, call, inputs["input_ids"]):
        for line, _ in lines:
            visual[row, line] = True
    scorers = low_rank(model, "head", 48)
    routed.compare(model, inputs, (0.5, 0.3, 0.3), fate, scorers, by_full_attention(visual), 2e-5)


@fates
@families
def test_alvts_with_a_small_rank(family: str, fate: str) -> None:
    """The joint scores, computed from the reference's own normed inputs."""
    model, inputs = ref.model(family), routed.batch_of(family)
    scorers = low_rank(model, "joint", 8)
    call = ref.language_arguments(model, inputs)
    visual = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, lines in routed.unit_lines(model, call, inputs["input_ids"]):
        for line, _ in lines:
            visual[row, line] = True

    def score(layer: routed.Layer) -> Tensor:
        own = scorers[layer.number]
        return own(layer.normed, visual=visual & layer.alive, mask=layer.alive)

    routed.compare(model, inputs, (0.4, 0.3, 0.3), fate, scorers, score)


def test_last_attention_needs_a_layer_before() -> None:
    model = ref.model("llava")
    with pytest.raises(tokenops.TokenOpsError, match="layer 1"):
        tokenops.attach(model, routed.routed(0.3, scorer=last_attention))


def test_scorers_see_only_what_may_run() -> None:
    """After an exit, mask and visual leave out what is gone."""
    seen: list[tuple[Tensor, Tensor]] = []

    def scorer(x: Tensor, *, mask: Tensor, visual: Tensor) -> Tensor:
        seen.append((mask, visual))
        return routed.direction(x)

    model, inputs = ref.model("llava"), routed.batch_of("llava")
    with torch.no_grad(), tokenops.attach(model, routed.routed((0.5, 0.3, 0.3), "exit", scorer)):
        seen.clear()
        model(**inputs)
    real, image = inputs["attention_mask"].bool(), inputs["input_ids"] == tiny.IMAGE
    assert len(seen) == 2  # the third layer keeps what the second did
    assert torch.equal(seen[0][0], real)
    assert torch.equal(seen[0][1], image & real)
    assert int(seen[1][1].sum()) == 8 * 6
    assert torch.equal(seen[1][0], seen[1][1] | (real & ~image))
