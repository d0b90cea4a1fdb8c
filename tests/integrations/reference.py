"""What an attached model must equal, computed without the library: kept tokens, dense masks, plain loops."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from integrations import tiny
from torch import Tensor

from tokenops import Pipeline, Prune, Selection
from tokenops.selectors import TopK
from tokenops.selectors.scorers import feature_norm

FAMILIES = tuple(tiny.MODELS)
BACKENDS = ("sdpa", "eager")
DTYPES = (torch.float32, torch.bfloat16)


@cache
def _model(family: str, backend: str, dtype: torch.dtype) -> Any:
    return tiny.MODELS[family](attn_implementation=backend).to(dtype)


def model(family: str, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A model of its own for every caller, always with the same weights."""
    return copy.deepcopy(_model(family, backend, dtype))


def prune(keep: float | int, **options: Any) -> Pipeline:
    """Keep the longest features."""
    return Pipeline(after_projector=Prune(TopK(feature_norm, keep), **options))


def prune_by(choose: Any, **options: Any) -> Pipeline:
    """Keep what ``choose(x, mask) -> (b n) bool`` says."""

    def select(x: Tensor, *, mask: Tensor) -> Selection:
        return Selection.from_mask(choose(x, mask) & mask)

    return Pipeline(after_projector=Prune(select, **options))


def prompts(family: str) -> list[dict[str, Any]]:
    """Several images, one image, text only, and (Qwen) a video between two images."""
    return [
        tiny.sample(family, [0, 1], 1),
        tiny.sample(family, [3], 2, (5, 2)),
        tiny.sample(family, [], 3),
        tiny.sample(family, [2, 3, 1], 4),
    ]


def to(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


class Recorder:
    """Arguments of every call of the language model, as they come before anything is dropped."""

    def __init__(self, model: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.hook = model.model.language_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.calls.append(dict(kwargs))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def language_arguments(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the language model of an unattached model is called with."""
    with Recorder(model) as recorder, torch.no_grad():
        model(**inputs, use_cache=False)
    return recorder.calls[0]


def units(ids: Tensor) -> list[tuple[int, list[int]]]:
    """(row, positions) of every run of placeholders."""
    found: list[tuple[int, list[int]]] = []
    for row, tokens in enumerate(ids.tolist()):
        before = None
        for i, token in enumerate(tokens):
            if token in (tiny.IMAGE, tiny.VIDEO):
                if token != before:
                    found.append((row, []))
                found[-1][1].append(i)
            before = token
    return found


def expected_keep(model: Any, inputs: dict[str, Any], ratio: float, scope: str = "image") -> Tensor:
    """(b l) True for the tokens that stay: each image's longest features, and line breaks of live rows."""
    embeds = language_arguments(model, inputs)["inputs_embeds"]
    newline = getattr(model.model, "image_newline", None)
    keep = inputs["attention_mask"].bool().clone()
    found = [(row, [row_of_patches(embeds[row], at, newline)]) for row, at in units(inputs["input_ids"])]
    if scope == "sample":
        rows = {row: [lines for r, many in found if r == row for lines in many] for row, _ in found}
        found = list(rows.items())
    for row, images in found:
        patches = [p for lines in images for line, _ in lines for p in line]
        length = embeds[row, patches].float().norm(dim=-1)
        k = max(1, int(ratio * len(patches) + 1e-6))
        chosen = {patches[i] for i in length.topk(k).indices.tolist()}
        for lines in images:
            for line, end in lines:
                for p in line:
                    keep[row, p] = p in chosen
                if end is not None:
                    keep[row, end] = any(p in chosen for p in line)
    return keep


def row_of_patches(
    embeds: Tensor, at: list[int], newline: Tensor | None
) -> list[tuple[list[int], int | None]]:
    """(patches, line break behind them or None): the base view or whole image first, then row by row."""
    if newline is None:
        return [(at, None)]
    base, rest = at[:16], at[16:]
    lines: list[tuple[list[int], int | None]] = [(base, None)]
    line: list[int] = []
    for p in rest:
        if torch.equal(embeds[p], newline.to(embeds.dtype)):
            lines.append((line, p))
            line = []
        else:
            line.append(p)
    assert not line
    return lines


def dense(model: Any, call: dict[str, Any], keep: Tensor) -> Tensor:
    """Logits of the unattached language model with dropped keys hidden, dropped positions forward-filled."""
    embeds = call["inputs_embeds"]
    length = embeds.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & keep[:, None, None, :]
    seen = seen | torch.eye(length, dtype=torch.bool)  # a hidden query must see something
    mask = torch.zeros(seen.shape, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)
    positions = call.get("position_ids")
    if positions is None:
        positions = torch.arange(length).expand(embeds.shape[:2])
    with torch.no_grad():
        out = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    filled = out.clone()
    for row in range(embeds.shape[0]):
        kept = keep[row].nonzero().flatten().tolist()
        for i in range(length):
            before = [p for p in kept if p <= i]
            filled[row, i] = out[row, before[-1] if before else kept[0]]
    return model.lm_head(filled)


def real(inputs: dict[str, Any], values: Tensor) -> Tensor:
    """``values`` at tokens that are no padding."""
    return values[inputs["attention_mask"].bool()]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest value."""
    scale = float(b.detach().abs().max().clamp(min=1.0))
    torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0.0)


def extend(inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """Text tokens (b n) behind the prompts."""
    out = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens], 1)}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            out[name] = torch.cat([inputs[name], torch.full_like(tokens, value).to(inputs[name].dtype)], 1)
    return out


def continue_greedily(model: Any, inputs: dict[str, Any], steps: int) -> tuple[Tensor, Tensor]:
    """(tokens (b steps), logits (b steps v)) without any cache, one whole forward per token."""
    tokens, logits = [], []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(**inputs, use_cache=False).logits[:, -1])
        tokens.append(logits[-1].argmax(-1, keepdim=True))
        inputs = extend(inputs, tokens[-1])
    return torch.cat(tokens, 1), torch.stack(logits, 1)
