"""Measuring a pipeline: accuracy, tokens kept, KV-cache bytes, and prefill time beside that of all tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from tokenops.analysis.measure.memory import stored_bytes
from tokenops.demo.answering import encode
from tokenops.demo.methods import BUDGETS, Asked, Subject
from tokenops.errors import TokenOpsError
from tokenops.integrations import attach
from tokenops.pipeline import Pipeline
from tokenops.pocket.painting import GRID

if TYPE_CHECKING:
    from tokenops.pocket import Scene

BATCH, WARM_UP, ROUNDS = 4, 2, 9
FEWEST_ROUNDS, ENOUGH_SECONDS = 3, 25.0
"""On a slow or busy machine timing ends early."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: name of the recipe; ``title`` is its name for people.
        keep: the budget; ``tokens`` of ``n`` visual tokens of an image ran, the mean over the layers.
        accuracy: mean over the kinds of questions; ``by_kind`` has the parts, ``questions`` their number.
        prefill_ms: median time of a batch, from pixels to the first answer word.
        prefill_ratio: median over rounds of that time divided by the time with nothing attached.
        kv_bytes: keys and values stored for one question.
    """

    method: str
    title: str
    keep: float
    tokens: int
    n: int
    accuracy: float
    by_kind: dict[str, float]
    questions: int
    prefill_ms: float
    prefill_ratio: float
    kv_bytes: int


@dataclass(frozen=True)
class Prefill:
    """Times of one variant in seconds, round by round, and what its cache stored."""

    seconds: tuple[float, ...]
    kv_bytes: int
    tokens: int
    n: int


def same_length(scenes: Sequence[Scene], number: int = BATCH) -> list[Asked]:
    """``number`` questions of one kind, so that no padding is timed or stored; scenes repeat if too few."""
    if not scenes:
        raise TokenOpsError("same_length", "at least one scene", 0)
    some = [scenes[i % len(scenes)] for i in range(number)]
    return [Asked(scene, scene.questions()[0]) for scene in some]


def _prefill_once(subject: Subject, inputs: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    out = subject.model(**inputs, use_cache=True, logits_to_keep=1)
    if out.logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, out.past_key_values


def _attached_once(subject: Subject, inputs: Any, pipeline: Pipeline) -> Prefill:
    with attach(subject.model, pipeline) as handle:
        seconds, cache = _prefill_once(subject, inputs)
        counts = {(trace.layer, trace.k) for trace in handle.trace}
        tokens = round(sum(handle.tokens_per_layer) / len(handle.tokens_per_layer))
    if len(counts) != len({layer for layer, _ in counts}):
        raise TokenOpsError("tokenops demo", f"the same count in every image of {pipeline}", counts)
    return Prefill((seconds,), stored_bytes(cache) // len(inputs["input_ids"]), tokens, GRID**2)


def time_prefill(
    subject: Subject, asked: Sequence[Asked], rounds: int = ROUNDS, step: Callable[[], None] = lambda: None
) -> tuple[tuple[float, ...], dict[tuple[str, float], Prefill]]:
    """Prefill times of all methods and budgets, interleaved: every round runs each of them once.

    Each round also runs the model with nothing attached and starts at another place; attaching is not timed.
    Warm-up rounds are thrown away. Returns the unattached times and (method, keep) -> :class:`Prefill`.
    """
    inputs = encode(subject, list(asked))
    variants = [((m.name, keep), m.pipeline(keep)) for m in subject.methods() for keep in BUDGETS]
    plain: list[float] = []
    seen: dict[tuple[str, float], list[Prefill]] = {key: [] for key, _ in variants}
    start = time.perf_counter()
    with torch.inference_mode():
        for turn in range(WARM_UP + rounds):
            if turn >= WARM_UP + FEWEST_ROUNDS and time.perf_counter() - start > ENOUGH_SECONDS:
                break
            plain.append(_prefill_once(subject, inputs)[0])
            shift = turn * 5 % len(variants)
            for key, pipeline in variants[shift:] + variants[:shift]:
                seen[key].append(_attached_once(subject, inputs, pipeline))
            step()
    measured = {
        key: Prefill(
            tuple(p.seconds[0] for p in runs[WARM_UP:]), runs[-1].kv_bytes, runs[-1].tokens, runs[-1].n
        )
        for key, runs in seen.items()
    }
    return tuple(plain[WARM_UP:]), measured


def ratio(seconds: Sequence[float], plain: Sequence[float]) -> float:
    """Median of the round-by-round ratios.

    >>> ratio([1.0, 2.0, 9.0], [2.0, 4.0, 6.0])
    0.5
    """
    return median(a / b for a, b in zip(seconds, plain, strict=True))


def measure(
    subject: Subject,
    scenes: Sequence[Scene],
    plain: Sequence[float],
    prefill: dict[tuple[str, float], Prefill],
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Ask every question of the scenes with every method and budget; one row for each.

    With nothing dropped the methods are the same model, bit by bit, so all tokens are evaluated once.
    """
    from tokenops.pocket import Report, evaluate

    rows: list[Row] = []
    full: Report | None = None
    for method in subject.methods():
        for keep in BUDGETS:
            if keep == 1.0 and full is not None:
                report = full
            else:
                with attach(subject.model, method.pipeline(keep)):
                    report = evaluate(subject.model, subject.processor, scenes)
            full = report if keep == 1.0 else full
            timed = prefill[method.name, keep]
            rows.append(
                Row(
                    method=method.name,
                    title=method.title,
                    keep=keep,
                    tokens=timed.tokens,
                    n=timed.n,
                    accuracy=report.mean,
                    by_kind={str(kind): value for kind, value in report.accuracy.items()},
                    questions=report.total,
                    prefill_ms=1e3 * median(timed.seconds),
                    prefill_ratio=ratio(timed.seconds, plain),
                    kv_bytes=timed.kv_bytes,
                )
            )
            step()
    return rows
