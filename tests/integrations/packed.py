"""Models that run tokenops' attention, and what went through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed
from integrations.merging import merging
from torch import Tensor

import tokenops
from tokenops import Pipeline
from tokenops.integrations import attention as module
from tokenops.integrations.attention import NAME, register_attention
from tokenops.kernels.attention import Segments

BACKENDS = ("sdpa", NAME)
slow = pytest.mark.slow
RARE = [pytest.param(which, marks=slow) for which in ("merge", "skip", "exit")]
every = pytest.mark.parametrize("which", ["none", "prune", "hybrid", *RARE])


def pipeline(which: str, family: str) -> Pipeline:
    return {
        "none": Pipeline,
        "prune": lambda: ref.prune(0.3),
        "merge": lambda: merging(family, "nearest"),
        "skip": lambda: routed.routed((0.6, None, 0.2)),
        "exit": lambda: routed.routed((None, 0.5, 0.2), "exit"),
        "hybrid": lambda: ref.prune(0.6) | routed.routed((0.5, 0.3, None)),
    }[which]()


@contextmanager
def running(which: str, family: str, backend: str, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    """A model of its own with the pipeline attached, on ``backend``."""
    register_attention()
    model = ref.model(family, backend, dtype)
    model.generation_config.eos_token_id = None
    if which == "none":
        yield model
        return
    with tokenops.attach(model, pipeline(which, family)):
        yield model


class Packs:
    """Segments of every call of the packed attention inside, by the tests' own count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Segments] = []
        original = module.attention

        def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, **options: Any) -> Tensor:
            self.calls.append(segments)
            return original(q, k, v, segments, **options)

        monkeypatch.setattr(module, "attention", attention)


@contextmanager
def told(monkeypatch: pytest.MonkeyPatch, match: str) -> Iterator[None]:
    """One warning with this reason, however often it applies."""
    monkeypatch.setattr(module, "_told", set())
    with pytest.warns(tokenops.TokenOpsWarning, match=match) as record:
        yield
    ours = [w for w in record if isinstance(w.message, tokenops.TokenOpsWarning)]
    assert len(ours) == 1, [str(w.message) for w in ours]
