"""What a model with routed layers must equal: whole sequences, layer by layer, no cache, no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import Tensor

from tokenops import Pipeline
from tokenops.routers import per_layer
from tokenops.routers.route import Route

Lines = list[tuple[list[int], int | None]]
Keeps = Sequence[float | int | None]

families = pytest.mark.parametrize("family", ref.FAMILIES)
slow = pytest.mark.slow
# every day without line breaks where they play no part
few = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", pytest.param("llava_next", marks=slow)])
backends = pytest.mark.parametrize("backend", ["sdpa", pytest.param("eager", marks=slow)])
fates = pytest.mark.parametrize("fate", ["skip", "exit"])
sides = pytest.mark.parametrize("side", ["left", pytest.param("right", marks=slow)])

# all, the paper's; from a layer on; a pyramid; a list with layers that run everything; only one layer
SCHEDULES: dict[str, Keeps] = {
    "every": (0.3, 0.3, 0.3),
    "later": (None, 0.3, 0.3),
    "pyramid": (0.8, 0.5, 0.2),
    "list": (0.25, None, 3),
    "first": (0.3, None, None),
}


def direction(x: Tensor) -> Tensor:
    """Scores along one direction; the norms of normed tokens are all the same."""
    return x.float() @ torch.linspace(0.0, 40.0, x.shape[-1], device=x.device).sin()


def route(keeps: Keeps | float, fate: str = "skip", scorer: Any = direction) -> Route:
    return Route(scorer, keeps if isinstance(keeps, (int, float)) else per_layer(keeps), fate=fate)


def routed(keeps: Keeps | float, fate: str = "skip", scorer: Any = direction) -> Pipeline:
    return Pipeline(layers=route(keeps, fate, scorer))


@dataclass
class Layer:
    """What the reference saw in one layer: normed input, who may run, attention of its inputs."""

    number: int
    normed: Tensor
    alive: Tensor
    attend: Callable[[Tensor], Tensor]
    before: Tensor | None


@dataclass
class Outcome:
    """Logits, and the tokens (b l) that ran in each layer."""

    logits: Tensor
    runs: list[Tensor]
    states: list[Tensor]


def by_direction(layer: Layer) -> Tensor:
    return direction(layer.normed)


def last_of(alive: Tensor) -> list[int]:
    return [int(row.nonzero()[-1]) for row in alive]


def by_last_attention(layer: Layer) -> Tensor:
    """FastV: the row of the last token in the map of the layer before, heads averaged."""
    assert layer.before is not None
    return torch.stack([layer.before[i, :, at].mean(0) for i, at in enumerate(last_of(layer.alive))])


def by_next_attention(layer: Layer) -> Tensor:
    """PyramidDrop: the same row in the map of this layer, over those that may run in it."""
    weights = layer.attend(layer.alive)
    return torch.stack([weights[i, :, at].mean(0) for i, at in enumerate(last_of(layer.alive))])


def additive(runs: Tensor, dtype: torch.dtype) -> Tensor:
    length = runs.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & runs[:, None, None, :]
    seen = seen | torch.eye(length, dtype=torch.bool)  # a hidden query must see something
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def unit_lines(model: Any, call: dict[str, Any], ids: Tensor) -> list[tuple[int, Lines]]:
    """(row, lines) of every image or video."""
    newline = getattr(model.model, "image_newline", None)
    embeds = call["inputs_embeds"]
    return [(row, ref.row_of_patches(embeds[row], at, newline)) for row, at in ref.units(ids)]


def dense(
    model: Any,
    call: dict[str, Any],
    units: Sequence[tuple[int, Lines]],
    entered: Tensor,
    keeps: Keeps,
    fate: str,
    score: Callable[[Layer], Tensor] = by_direction,
) -> Outcome:
    """Layer by layer with explicit masks; ``entered`` (b l) tokens that reach the language model."""
    lm = model.model.language_model
    hidden, places = call["inputs_embeds"], call.get("position_ids")
    if places is None:
        places = torch.arange(hidden.shape[1]).expand(hidden.shape[:2])
    if places.ndim == 3 and places.shape[0] == 4:
        places = places[1:]
    angles = lm.rotary_emb(hidden, places)
    alive, before, runs, states = entered, None, [], [hidden]
    for number, (layer, keep) in enumerate(zip(lm.layers, keeps, strict=True)):
        normed = layer.input_layernorm(hidden)

        def attend(among: Tensor, layer: Any = layer, normed: Tensor = normed) -> Tensor:
            return attention_map(layer.self_attn, normed, additive(among, normed.dtype), angles)

        ran = alive
        if keep is not None:
            with torch.no_grad():
                scores = score(Layer(number, normed, alive, attend, before))
            ran = choose(units, scores, entered, alive, keep)
        mask = additive(ran, hidden.dtype)
        if any(k is not None for k in keeps[number + 1 :]):
            with torch.no_grad():
                before = attend(ran)
        out = layer(hidden, attention_mask=mask, position_embeddings=angles, position_ids=None)
        out = out[0] if isinstance(out, tuple) else out
        hidden = torch.where(ran[..., None], out, hidden)
        runs.append(ran)
        states.append(hidden)
        alive = ran if fate == "exit" else alive
    logits = model.lm_head(filled(lm.norm(hidden), alive))
    return Outcome(logits, runs, states)


def attention_map(attention: Any, x: Tensor, mask: Tensor, angles: Any) -> Tensor:
    """(b h l l) weights, as the model's own eager attention shows them."""
    before = attention.config
    attention.config = eager = type(before).from_dict(before.to_dict())
    eager._attn_implementation = "eager"
    try:
        return attention(x, attention_mask=mask, position_embeddings=angles, position_ids=None)[1].float()
    finally:
        attention.config = before


def choose(
    units: Sequence[tuple[int, Lines]], scores: Tensor, entered: Tensor, alive: Tensor, keep: float | int
) -> Tensor:
    """The best of every unit among those alive; a line break where its line keeps one."""
    ran = alive.clone()
    for row, lines in units:
        patches = [p for line, _ in lines for p in line]
        number = sum(bool(entered[row, p]) for p in patches)
        k = min(number, keep) if isinstance(keep, int) else max(1, int(keep * number + 1e-6))
        here = [p for p in patches if alive[row, p]]
        best = set(sorted(here, key=lambda p: -float(scores[row, p]))[:k])
        for p in patches:
            ran[row, p] = p in best
        for line, end in lines:
            if end is not None:
                ran[row, end] = bool(alive[row, end]) and any(p in best for p in line)
    return ran


def filled(hidden: Tensor, alive: Tensor) -> Tensor:
    """Every gone position holds the state of the last one before it that is there."""
    index = torch.arange(alive.shape[1]).repeat(alive.shape[0], 1)
    for row, there in enumerate(alive.tolist()):
        kept = [i for i, is_there in enumerate(there) if is_there]
        for i in range(len(there)):
            index[row, i] = max((p for p in kept if p <= i), default=kept[0])
    return hidden.gather(1, index[..., None].expand_as(hidden))


def expected(
    model: Any,
    inputs: dict[str, Any],
    keeps: Keeps,
    fate: str,
    score: Callable[[Layer], Tensor] = by_direction,
    entered: Tensor | None = None,
) -> Outcome:
    """The reference for a whole prompt of an unattached model."""
    call = ref.language_arguments(model, inputs)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        units = unit_lines(model, call, inputs["input_ids"])
        return dense(model, call, units, mask if entered is None else entered, keeps, fate, score)


def compare(
    model: Any,
    inputs: dict[str, Any],
    keeps: Keeps,
    fate: str,
    scorer: Any = direction,
    score: Callable[[Layer], Tensor] = by_direction,
    tolerance: float = 1e-5,
) -> Any:
    """The attached model's logits against the reference; its handle."""
    import tokenops

    want = expected(model, inputs, keeps, fate, score)
    assert any(bool((r.sum(1) < inputs["attention_mask"].sum(1)).any()) for r in want.runs)
    with torch.no_grad(), tokenops.attach(model, routed(keeps, fate, scorer)) as handle:
        got = model(**inputs).logits
    ref.close(ref.real(inputs, got), ref.real(inputs, want.logits), tolerance)
    return handle


def talker(family: str, backend: str = "sdpa") -> Any:
    """A model that says text and does not stop."""
    model = ref.model(family, backend)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight[tiny.IMAGE : tiny.VIDEO + 1] = 0.0
    return model


def batch_of(family: str, side: str = "left") -> dict[str, Any]:
    return tiny.batch(ref.prompts(family), side)
