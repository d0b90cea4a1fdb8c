"""Time inside the stages of a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenops.analysis.measure.timing import Timer
from tokenops.pipeline import Pipeline

PARTS = ("select", "merge", "split")
"""Methods of a stage or a route that a forward calls."""


@contextmanager
def timed_stages(pipeline: Pipeline, timer: Timer) -> Iterator[list[float]]:
    """Inside, every call of a stage appends its seconds to the list.

    That is scoring, choosing, merging, and the gather and scatter of a route. What a pipeline costs outside
    of its stages, such as reading signals in the vision tower or building masks, is not in it.
    """
    spent: list[float] = []
    places = [(stage, part) for stage in pipeline.stages.values() for part in PARTS if hasattr(stage, part)]
    before = [vars(stage).get(part) for stage, part in places]
    try:
        for stage, part in places:
            vars(stage)[part] = _timed(getattr(stage, part), timer, spent)
        yield spent
    finally:
        for (stage, part), own in zip(places, before, strict=True):
            vars(stage).pop(part, None)
            if own is not None:
                vars(stage)[part] = own


def _timed(original: Callable[..., Any], timer: Timer, spent: list[float]) -> Callable[..., Any]:
    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        elapsed = timer()
        result = original(*args, **kwargs)
        spent.append(elapsed())
        return result

    return timed
