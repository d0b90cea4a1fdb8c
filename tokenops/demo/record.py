"""The demo's results as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tokenops.analysis.pictures import Panel, draw_panels
from tokenops.demo.answering import Answer, Answered
from tokenops.demo.measuring import BATCH, Row
from tokenops.demo.methods import BUDGETS, Asked, Method

FORMAT, VERSION = "tokenops-demo", 1
QUOTED = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}"
NOTE = (
    "Prefill runs from pixels to the first answer word; KV cache is what one question stores. The pocket "
    "model has 1.3 million parameters, and its vision tower, which none of these methods shortens, is about "
    "half of the work: hence the modest gain in prefill. In large models the tower is between a few per cent "
    "(LLaVA-1.5) and a third (Qwen2.5-VL). Accuracy is the mean over three kinds of questions, uncertain by "
    "a few points; --questions 2000 narrows it down."
)


def as_json(
    rows: Sequence[Row], answers: Sequence[Answered], *, seed: int, rounds: int, full_ms: float
) -> str:
    """The table, the answers and the conditions they were measured under."""
    from tokenops import __version__

    record: dict[str, Any] = {
        "format": FORMAT,
        "format_version": VERSION,
        "tokenops_version": __version__,
        "model": "tokenops.pocket",
        "note": NOTE,
        "seed": seed,
        "questions": rows[0].questions if rows else 0,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "prefill": {"batch": BATCH, "rounds": rounds, "unattached_ms": round(full_ms, 3)},
        "rows": [_rounded(asdict(row)) for row in rows],
        "answers": [_answers(answered) for answered in answers],
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    return rounded | {"by_kind": {kind: round(value, 4) for kind, value in row["by_kind"].items()}}


def _answers(answered: Answered) -> dict[str, Any]:
    question = answered.asked.question
    return {
        "question": question.text,
        "truth": question.answer,
        "answers": [
            {"method": a.method, "keep": a.keep, "tokens": a.tokens, "text": a.text, "right": a.right}
            for a in answered.answers
        ],
    }


def panel(asked: Asked, answer: Answer) -> Panel:
    """One picture of the sheet: the scene, what is kept of it and what that led to."""
    pixels = torch.tensor(asked.scene.pixels)
    sign = "\N{CHECK MARK}" if answer.right else "\N{BALLOT X}"
    return Panel(pixels, answer.kept, f"{answer.text or '(no answer)'} {sign}", answer.right)


def as_picture(asked: Asked, methods: Sequence[Method], answers: Mapping[str, Sequence[Answer]]) -> bytes:
    """A PNG: methods down, budgets across; kept tokens bright, dropped ones dark."""
    first = answers[methods[0].name]
    columns = [f"{keep:.0%}\n{a.tokens} of {a.n} tokens" for keep, a in zip(BUDGETS, first, strict=True)]
    return draw_panels(
        [[panel(asked, answer) for answer in answers[method.name]] for method in methods],
        rows=[method.title.replace(" ", "\n") for method in methods],
        columns=columns,
        title=QUOTED.format(asked.question.text.replace(" ?", "?")),
        subtitle=f"true answer: {asked.question.answer}",
        footer="Bright tokens reach the language model, dark ones are dropped before it. "
        "Under each picture: what the pocket model then answers.",
    )


def layers_picture(asked: Asked, method: Method, answers: Sequence[Answer]) -> bytes:
    """A PNG: layers down, budgets across; tokens that ran in a layer bright, those that skipped it dark."""
    pixels = torch.tensor(asked.scene.pixels)
    columns = [f"{keep:.0%}\n{a.tokens} of {a.n} tokens" for keep, a in zip(BUDGETS, answers, strict=True)]
    depth = len(answers[0].layers)
    panels = [[Panel(pixels, a.layers[layer]) for a in answers] for layer in range(depth)]
    return draw_panels(
        panels,
        rows=[f"layer {layer}" for layer in range(depth)],
        columns=columns,
        title=f"{method.title}: {QUOTED.format(asked.question.text.replace(' ?', '?'))}",
        subtitle=f"true answer: {asked.question.answer}; " + ", ".join(a.text or "(none)" for a in answers),
        footer="Before every layer ALVTS chooses the tokens that run in it; the others skip the layer "
        "and may be chosen again by the next.",
    )
