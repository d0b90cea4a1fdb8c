"""A clock that only the test moves, and what a model looks like before and after."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenops import Pipeline, Prune
from tokenops.selectors import TopK

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 12
"""Of the language models of ``tiny``."""


class Clock:
    """Stands still unless somebody advances it; a timer of it reads the seconds since it was started."""

    def __init__(self) -> None:
        self.now, self.started = 0.0, 0
        self.on_start: Callable[[], None] = lambda: None

    def __call__(self) -> Callable[[], float]:
        self.started += 1
        self.on_start()
        start = self.now
        return lambda: self.now - start

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Ticking(nn.Module):
    """A scorer that takes as long as it is told, and does what it is told at a certain call."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.calls: list[None] = []
        self.at: dict[int, BaseException] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(None)
        self.clock.advance(self.seconds)
        if len(self.calls) in self.at:
            raise self.at[len(self.calls)]
        return x[..., 0].float()


def prune(scorer: Callable[..., Any], keep: float = 0.25) -> Pipeline:
    return Pipeline(after_projector=Prune(TopK(scorer, keep)))


def ticking_layers(model: Any, clock: Clock, seconds: float = 1.0) -> None:
    """Every call of the first decoder layer takes so long on the clock."""

    def tick(*_: Any) -> None:
        clock.advance(seconds)

    model.model.language_model.layers[0].self_attn.register_forward_pre_hook(tick)


def state_of(*roots: nn.Module) -> dict[str, Any]:
    """All that must be as before, values by identity."""
    modules = [m for root in roots for m in root.modules()]
    return {
        "attributes": [{n: id(v) for n, v in vars(m).items()} for m in modules],
        "modes": [m.training for m in modules],
        "buffers": [{n: id(b) for n, b in m._buffers.items()} for m in modules],
        "weights": [p.detach().clone() for root in roots for p in root.parameters()],
        "random": torch.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "collector": gc.isenabled(),
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights = zip(before.pop("weights"), after.pop("weights"), strict=True)
    return before == after and all(torch.equal(a, b) for a, b in weights)
