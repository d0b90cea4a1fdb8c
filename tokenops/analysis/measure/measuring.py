"""Measure what pipelines do to a model, on this machine, beside the model alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.analysis.cost import Device
from tokenops.analysis.cost.devices import find_device
from tokenops.analysis.measure.environment import environment
from tokenops.analysis.measure.limits import device_name, image_sizes, limit_of
from tokenops.analysis.measure.result import FULL, Measurement, Row
from tokenops.analysis.measure.run import Bench, Look, Times, quiet_collector, take_times
from tokenops.analysis.measure.statistics import Ratio, Spread
from tokenops.analysis.measure.timing import Timer, timer_for
from tokenops.analysis.measure.untouched import untouched
from tokenops.errors import TokenOpsError, check_ints
from tokenops.integrations import Family, Trace
from tokenops.integrations.families import find_parts
from tokenops.pipeline import Pipeline

REFUSED = (
    *("labels", "past_key_values", "inputs_embeds"),
    # what measuring sets itself
    *("use_cache", "logits_to_keep", "max_new_tokens", "min_new_tokens", "do_sample", "num_beams"),
    *("pad_token_id", "streamer"),
)


def measure(
    model: nn.Module,
    inputs: Mapping[str, Any],
    pipeline: Pipeline | Mapping[str, Pipeline],
    *,
    new_tokens: int = 32,
    runs: int = 9,
    warmup: int = 2,
    timer: str | Timer | None = None,
    device: str | Device | None = None,
    family: Family | None = None,
    step: Callable[[], None] = lambda: None,
) -> Measurement:
    r"""Time to first token, decoding speed, memory and overhead of one or more pipelines, and of none.

    .. math:: \text{speed-up} = \mathrm{median}_i\; t^\text{full}_i / t_i

    over rounds i. Every round runs every contender once, forwards and backwards in turn (A B B A), after
    ``warmup`` rounds that do not count; attaching is not timed. Three things are measured apart, since they
    would disturb the times: memory and tokens, in one run before; time inside the stages, in ``runs`` runs
    behind.

    * *Time to first token* is one forward of the whole model on the inputs as they are, vision tower
      included, up to the first token's id. The overhead of ``generate`` around it is not in it.
    * *Decoding* is ``generate`` without sampling, from its first token to token ``new_tokens``.
    * *Peak memory* is that of the same forward, beside weights and inputs.

    The model, its modes and the random state are afterwards as before, also after an error or Ctrl-C.

    Args:
        model: of a known family, on one CPU or CUDA device, without a pipeline attached, not compiled.
        inputs: what ``generate`` takes, with images or videos, on the model's device; no options of it.
        pipeline: one, or several by name, to compare in one interleaved run.
        new_tokens: how many to generate; 1 leaves decoding out.
        runs: rounds that count; fewer than six tell nothing at 95 % confidence, and the verdict says so.
        warmup: rounds before them that do not.
        timer: ``"cuda"`` (events; the only one there), ``"processor"`` (the default on a CPU with one thread)
            or ``"wall"`` (with more); or a function that starts a clock and returns one that reads it.
        device: whose roofline to compare with, as :func:`tokenops.analysis.cost` takes it; by default this
            one, if it is known. The limit is an estimate: that of a CPU rests on a second of short runs.
        family: as in :func:`tokenops.attach`.
        step: called after every run, ``steps(...)`` times.

    Raises:
        TokenOpsError: no images among the inputs; labels, a cache or options of ``generate`` among them;
            inputs on another device; a compiled or distributed model; a bad number; an unknown timer, device
            or family; a ``step`` that cannot be called; whatever :func:`tokenops.attach` refuses. Nothing has
            been timed then.

    >>> from tokenops import pocket, recipes
    >>> model, processor = pocket.load()
    >>> scene = pocket.scenes(1, "heldout", seed=1)[0]
    >>> inputs = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")
    >>> found = measure(model, inputs, recipes.random(keep=0.25), runs=1, warmup=0, new_tokens=2)
    >>> [(row.name, row.tokens) for row in found.rows]
    [('full', 144.0), ('pipeline', 36.0)]
    >>> found["full"].kv_bytes // found["pipeline"].kv_bytes
    3
    >>> "pipeline" in found.table()
    True
    """
    contenders: dict[str, Pipeline | None] = {FULL: None, **named_pipelines("measure", pipeline)}
    check_ints("measure", new_tokens=(new_tokens, 1), runs=(runs, 1), warmup=(warmup, 0))
    parts = find_parts(model, family)
    where = _check_model(model)
    _check_inputs(inputs, where)
    if not callable(step):
        raise TokenOpsError("measure", "step as a function", repr(step))
    known = device_name(where) if device is None else find_device(device, "measure")
    told, clock = (_name(timer), timer) if callable(timer) else timer_for(where, timer)
    marks = tuple(getattr(parts.base.config, name) for name in parts.family.tokens.values())
    bench = Bench(parts.model, dict(inputs), contenders, parts.family, marks, clock, new_tokens)
    with untouched(parts.model, *(p for p in contenders.values() if p is not None)), quiet_collector():
        images, text = bench.images()
        if not images:
            raise TokenOpsError("measure", "inputs with images or videos", "text only: nothing to select")
        looks = {name: bench.look(name) for name in contenders}
        given = (image_sizes(images, inputs), text.tolist(), known)
        limits = {n: None if p is None else limit_of(parts.model, p, *given) for n, p in contenders.items()}
        times = take_times(bench, warmup, runs, step)
    every = (sum(image.n for image in images) / len(images),) * len(parts.layers)
    rows = tuple(
        _row(name, contenders[name], looks[name], times, looks[name].tokens_per_layer or every, limits[name])
        for name in contenders
    )
    settings = _settings(parts.model, len(parts.layers), images, text) | {
        "timer": told,
        "runs": runs,
        "warmup": warmup,
        "new_tokens": new_tokens,
    }
    return Measurement(rows, settings, environment(where))


def steps(contenders: int, runs: int, warmup: int) -> int:
    """How often :func:`measure` calls ``step`` for that many pipelines.

    >>> steps(1, runs=9, warmup=2)
    40
    """
    return (contenders + 1) * (2 * runs + warmup)


def named_pipelines(who: str, pipelines: Any) -> dict[str, Pipeline]:
    """One pipeline or several by name, as several by name.

    Raises:
        TokenOpsError: something else, none, or a name that stands for the model alone.
    """
    named = dict(pipelines) if isinstance(pipelines, Mapping) else {"pipeline": pipelines}
    for name, one in named.items():
        if not isinstance(one, Pipeline):
            raise TokenOpsError(who, "a Pipeline, or several by name", f"{name!r}: {type(one).__name__}")
        if not isinstance(name, str) or name == FULL:
            raise TokenOpsError(who, f"names of pipelines other than {FULL!r}", repr(name))
    if not named:
        raise TokenOpsError(who, "at least one pipeline", "none")
    return named


def _check_model(model: nn.Module) -> torch.device:
    """Its one device."""
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1:
        raise TokenOpsError("measure", "a model on one device", sorted(map(str, devices)))
    # attaching makes new functions each time, so every run would compile again, or silently give up on it
    if any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in model.modules()):
        raise TokenOpsError("measure", "a model that is not compiled", "torch.compile")
    return devices.pop()


def _check_inputs(inputs: Any, device: torch.device) -> None:
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise TokenOpsError("measure", "the inputs of generate, input_ids among them", type(inputs).__name__)
    if refused := [name for name in REFUSED if name in inputs]:
        raise TokenOpsError("measure", "the inputs of generate, a prompt without options", ", ".join(refused))
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.device != device:
            raise TokenOpsError(
                "measure", f"inputs on the model's device, {device}", f"{name} on {value.device}"
            )


def _name(timer: Any) -> str:
    return getattr(timer, "__name__", type(timer).__name__)


def _row(
    name: str,
    pipeline: Pipeline | None,
    look: Look,
    times: Mapping[str, Times],
    tokens: tuple[float, ...],
    limit: Any,
) -> Row:
    own, full = times[name], times[FULL]
    return Row(
        name=name,
        pipeline=None if pipeline is None else repr(pipeline),
        ttft=Spread(tuple(own.ttft)),
        decode=Spread(tuple(own.decode)) if own.decode else None,
        speedup=Ratio.paired(full.ttft, own.ttft),
        decode_speedup=Ratio.paired(own.decode, full.decode) if own.decode else None,
        overhead=Spread(tuple(own.overhead)),
        kv_bytes=look.kv_bytes,
        peak_bytes=look.peak_bytes,
        peak_reason=look.peak_reason,
        tokens_per_layer=tokens,
        limit=limit,
    )


def _settings(model: Any, layers: int, images: tuple[Trace, ...], text: Tensor) -> dict[str, Any]:
    weights = [*model.parameters(), *model.buffers()]
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(t.numel() * t.element_size() for t in weights),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "layers": layers,
        "batch": len(text),
        "images": len(images),
        "visual_tokens": sum(image.n for image in images) / len(text),
        "text_tokens": float(text.float().mean()),
    }
