"""Run a model with and without pipelines, in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.analysis.measure.memory import NO_PROFILER, peak_bytes, stored_bytes
from tokenops.analysis.measure.overhead import timed_stages
from tokenops.analysis.measure.timing import Timer, interleaved, settle_allocator
from tokenops.integrations import Family, Trace, attach
from tokenops.pipeline import Pipeline
from tokenops.recipes import random

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """What one untimed prefill showed: everything that no clock is needed for."""

    tokens_per_layer: tuple[float, ...]
    kv_bytes: int
    peak_bytes: int | None
    peak_reason: str | None


@dataclass(frozen=True)
class Bench:
    """A model and the contenders on it; ``None`` runs the model alone."""

    model: nn.Module
    inputs: Inputs
    contenders: Mapping[str, Pipeline | None]
    family: Family
    placeholders: tuple[int, ...]
    timer: Timer
    new_tokens: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def running(self, name: str) -> AbstractContextManager[Any]:
        """Inside, the contender's pipeline is attached."""
        pipeline = self.contenders[name]
        return nullcontext() if pipeline is None else attach(self.model, pipeline, family=self.family)

    def prefill(self) -> tuple[Tensor, Any]:
        """The first token of every row (b) and the cache."""
        out = self.model(**self.inputs, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1), out.past_key_values

    def images(self) -> tuple[tuple[Trace, ...], Tensor]:
        """The images and videos of the inputs, none of whose tokens is dropped; (b) tokens of text."""
        ids = self.inputs["input_ids"]
        with attach(self.model, random(keep=1.0), family=self.family) as handle:
            self.prefill()
            words = torch.stack([ids != token for token in self.placeholders]).all(0)
            mask = self.inputs.get("attention_mask")
            return handle.trace, (words if mask is None else words & mask.bool()).sum(1)

    def look(self, name: str) -> Look:
        """Tokens, and bytes of the cache and at the peak."""
        tidy()
        with self.running(name) as handle:
            peak, (_, cache) = peak_bytes(self.prefill, self.device)
            tokens = () if handle is None else handle.tokens_per_layer
        return Look(tokens, stored_bytes(cache), peak, NO_PROFILER if peak is None else None)

    def first_token(self) -> float:
        """Seconds to the first token."""
        elapsed = self.timer()
        kept = self.prefill()
        seconds = elapsed()
        del kept  # the cache is released after the clock has stopped
        return seconds

    def decode(self) -> float:
        """Tokens a second of ``generate``, from the first token to the last, all rows together."""
        ticks = _Ticks(self.timer)
        model: Any = self.model
        own = model.generation_config
        model.generate(
            **self.inputs,
            max_new_tokens=self.new_tokens,
            min_new_tokens=self.new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=0 if own.pad_token_id is None else own.pad_token_id,
            streamer=ticks,
        )
        rows = self.inputs["input_ids"].shape[0]
        return rows * ticks.later / ticks.seconds

    def overhead(self, name: str) -> float:
        """Seconds of one prefill inside the stages."""
        pipeline = self.contenders[name]
        if pipeline is None:
            return 0.0
        with self.running(name), timed_stages(pipeline, self.timer) as spent:
            self.prefill()
            return sum(spent)


class _Ticks:
    """A streamer for ``generate`` that takes the time between the first new token and the latest."""

    def __init__(self, timer: Timer) -> None:
        self.timer, self.calls, self.seconds = timer, 0, 0.0

    @property
    def later(self) -> int:
        """Tokens behind the first."""
        return self.calls - 2

    def put(self, _: Tensor) -> None:
        # the first call brings the prompt, the second the first token; both are on the CPU already
        self.calls += 1
        if self.calls == 2:
            self.elapsed = self.timer()
        elif self.calls > 2:
            self.seconds = self.elapsed()

    def end(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Times:
    """Of one contender, by round."""

    ttft: list[float]
    decode: list[float]
    overhead: list[float]


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Garbage is collected now, and then only when :func:`tidy` is called."""
    collecting = gc.isenabled()
    gc.disable()
    gc.collect()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def tidy() -> None:
    """Collect what became garbage among the objects made since the last time, which is quick."""
    gc.collect(1)


def take_times(bench: Bench, warmup: int, runs: int, step: Callable[[], None]) -> dict[str, Times]:
    """All contenders interleaved, the first ``warmup`` rounds thrown away; then their stages alone."""
    times = {name: Times([], [], []) for name in bench.contenders}
    names = list(times)
    settle_allocator()
    for number, name in interleaved(names, warmup + runs):
        tidy()
        with bench.running(name):
            ttft = bench.first_token()
            decode = bench.decode() if bench.new_tokens > 1 else None
        if number >= warmup:
            times[name].ttft.append(ttft)
            if decode is not None:
                times[name].decode.append(decode)
        step()
    for _, name in interleaved(names, runs):
        times[name].overhead.append(bench.overhead(name))
        step()
    return times
