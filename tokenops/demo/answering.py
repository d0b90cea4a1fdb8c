"""Answering questions with ``generate``, at every budget, and remembering which tokens were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tokenops.analysis.pictures import kept_mask
from tokenops.demo.methods import BUDGETS, Asked, Method, Subject
from tokenops.integrations import Trace, attach

if TYPE_CHECKING:
    from transformers import BatchFeature

_MOST_WORDS = 2


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method answered with ``tokens`` of ``n`` visual tokens, the mean over the layers.

    ``layers`` holds a (rows columns) mask of the tokens that ran for every layer of the language model,
    ``kept`` those that ran in any.
    """

    method: str
    keep: float
    text: str
    right: bool
    tokens: int
    n: int
    kept: Tensor
    layers: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Answered:
    """A question and its answers, the largest budget first."""

    asked: Asked
    answers: tuple[Answer, ...]


def encode(subject: Subject, asked: list[Asked]) -> BatchFeature:
    """The processor's left-padded batch of some questions."""
    processor: Any = subject.processor
    inputs = processor(
        images=[a.scene.image for a in asked],
        text=[a.question.prompt for a in asked],
        padding=True,
        return_tensors="pt",
    )
    return inputs.to(subject.model.device, dtype=subject.model.dtype)


def ran(traces: Sequence[Trace], layers: int) -> tuple[Tensor, ...]:
    """For every layer the tokens of the one image that ran in it, (rows columns)."""
    from tokenops.pocket.painting import GRID

    before = torch.ones(GRID, GRID, dtype=torch.bool)
    inside: dict[int, Tensor] = {}
    for trace in traces:
        kept = kept_mask(trace.grid, GRID, GRID)
        if trace.layer is None:
            before = kept
        else:
            inside[trace.layer] = kept
    return tuple(inside.get(layer, before) for layer in range(layers))


def answer(subject: Subject, method: Method, keep: float, asked: Asked) -> Answer:
    """One answer, word by word until the model ends it."""
    inputs, model = encode(subject, [asked]), cast(Any, subject.model)
    with torch.inference_mode(), attach(subject.model, method.pipeline(keep)) as handle:
        out = model.generate(**inputs, max_new_tokens=_MOST_WORDS, do_sample=False)
        layers = ran(handle.trace, len(handle.tokens_per_layer))
    words = out[0, inputs["input_ids"].shape[1] :]
    text = subject.processor.tokenizer.decode(words, skip_special_tokens=True).strip()
    kept = torch.stack(layers)
    tokens = round(float(kept.sum((1, 2)).float().mean()))
    right = text == asked.question.answer
    return Answer(method.name, keep, text, right, tokens, kept[0].numel(), kept.any(0), layers)


def answer_all(subject: Subject, method: Method, asked: Asked) -> Answered:
    """The answers at every budget."""
    return Answered(asked, tuple(answer(subject, method, keep, asked) for keep in BUDGETS))
