"""Ask a question with every pipeline and collect what each did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from tokenops.analysis.cost import Device
from tokenops.analysis.cost.devices import find_device
from tokenops.analysis.measure import Measurement, measure
from tokenops.analysis.measure.measuring import named_pipelines
from tokenops.analysis.measure.result import FULL
from tokenops.analysis.measure.untouched import untouched
from tokenops.analysis.report import asking
from tokenops.analysis.report.estimate import estimate
from tokenops.analysis.report.page import Report
from tokenops.analysis.report.record import method_record, visual_record
from tokenops.analysis.report.views import Shown, views
from tokenops.errors import TokenOpsError, check_ints
from tokenops.integrations import Family, Trace, attach
from tokenops.integrations.families import find_parts
from tokenops.pipeline import Pipeline
from tokenops.recipes import random

FORMAT, VERSION = "tokenops-report", 1


def report(
    model: nn.Module,
    processor: Any,
    images: Any,
    question: str,
    pipelines: Pipeline | Mapping[str, Pipeline],
    *,
    videos: Sequence[Any] = (),
    new_tokens: int = 32,
    runs: int = 6,
    device: str | Device | None = None,
    family: Family | None = None,
    step: Callable[[], None] = lambda: None,
) -> Report:
    """One question with every pipeline and with none: tokens, scores, answers, time, as one HTML page.

    Kept tokens and scores are those of ``handle.trace`` in the prefill of ``generate``; answers are greedy;
    times are those of :func:`tokenops.analysis.measure` and operations those of
    :func:`tokenops.analysis.cost`. The pictures are made of the processor's output, so that every token lies
    on the pixels it was made of; what a processor cuts off is not on them.

    Args:
        model: of a known family, on one device, without a pipeline attached.
        processor: the model's, as ``AutoProcessor`` loads it.
        images: a picture of PIL, or a list of them. Can be empty where there are videos.
        question: put into the model's chat template behind the images; a text with placeholders of its own
            is taken as it is.
        pipelines: one, or several by name.
        videos: each as the processor takes it, usually a list of frames.
        new_tokens: of an answer.
        runs: interleaved rounds of timing; 0 leaves time out, fewer than six are too few to tell.
        device: whose roofline limits the speed-up, as in :func:`tokenops.analysis.measure`.
        family: as in :func:`tokenops.attach`.
        step: called after every answer and every timed run, ``steps(...)`` times.

    Raises:
        TokenOpsError: no image and no video, no pipeline, a bad number, an unknown device, a ``step`` that
            cannot be called, inputs the processor does not take, and whatever :func:`tokenops.attach`
            refuses. The model is as before then, as it is afterwards.

    >>> from tokenops import pocket, recipes
    >>> model, processor = pocket.load()
    >>> scene = pocket.scenes(1, "heldout", seed=1)[0]
    >>> page = report(model, processor, scene.image, "how many coloured digits ?", recipes.random(16), runs=0)
    >>> [len(stage["index"]) for stage in page.data["methods"][1]["stages"]]
    [16]
    >>> page.html()[:15]
    '<!doctype html>'
    """
    named = named_pipelines("report", pipelines)
    check_ints("report", new_tokens=(new_tokens, 1), runs=(runs, 0))
    if not callable(step):
        raise TokenOpsError("report", "step as a function", repr(step))
    if device is not None:
        find_device(device, "report")
    parts = find_parts(model, family)
    pictures, clips = asking.pictures(images), list(videos)
    inputs = asking.encode(parts.model, processor, pictures, clips, question)
    asked = _Asked(parts.model, processor, inputs, new_tokens, family)
    with untouched(parts.model, *named.values()):
        every, answer, everywhere = asked.ask(random(keep=1.0))
        step()
        shown = Shown(parts, inputs, processor)
        visuals = [visual_record(one, *_drawn(shown, every, one, pictures)) for one in every]
        methods = [method_record(FULL, None, every, (), answer, everywhere)]
        for name, pipeline in named.items():
            traces, answer, per_layer = asked.ask(pipeline)
            methods.append(method_record(name, pipeline, every, traces, answer, per_layer))
            step()
    times = None
    if runs:
        times = measure(
            parts.model,
            inputs,
            named,
            new_tokens=1,
            runs=runs,
            warmup=1,
            device=device,
            family=family,
            step=step,
        )
    text = int(inputs["input_ids"].shape[1]) - sum(len(t.positions) for t in every)
    for record in methods:
        record["time"] = _time(times, record["name"])
        record["cost"] = estimate(parts.model, every, inputs, named.get(record["name"]), text)
    return Report(_head(parts.model, question, text, times) | {"visuals": visuals, "methods": methods})


def steps(pipelines: int, runs: int) -> int:
    """How often :func:`report` calls ``step`` for that many pipelines.

    >>> steps(1, runs=5)
    24
    """
    from tokenops.analysis.measure.measuring import steps as timed

    return pipelines + 1 + (timed(pipelines, runs, 1) if runs else 0)


class _Asked:
    """A model with its inputs, ready to answer."""

    def __init__(self, model: Any, processor: Any, inputs: dict[str, Any], most: int, family: Any) -> None:
        self.model, self.processor, self.inputs = model, processor, inputs
        self.most, self.family = most, family

    def ask(self, pipeline: Pipeline) -> tuple[tuple[Trace, ...], str, tuple[float, ...]]:
        """The traces of the prefill, the answer, and visual tokens per layer."""
        with attach(self.model, pipeline, family=self.family) as handle:
            words = asking.generate(self.model, self.inputs, self.most)
            traces, per_layer = handle.trace, handle.tokens_per_layer
        reader = getattr(self.processor, "tokenizer", self.processor)
        return traces, reader.decode(words, skip_special_tokens=True).strip(), per_layer


def _drawn(shown: Shown, every: Sequence[Trace], one: Trace, pictures: list[Any]) -> tuple[Any, Any]:
    """The views of an image or video, and the picture it was made from."""
    number = [t.image for t in every if t.kind == one.kind].index(one.image)
    return views(shown, one, number), pictures[number] if one.kind == "image" else None


def _time(times: Measurement | None, name: str) -> dict[str, Any] | None:
    if times is None:
        return None
    row = times[name]
    ratio = row.speedup.as_dict() | {"verdict": row.verdict}
    limit = None if row.limit is None else {"speedup": row.limit.speedup, "reason": row.limit.reason}
    return {"seconds": row.ttft.median, "speedup": ratio, "limit": limit, "kv_bytes": row.kv_bytes}


def _head(model: Any, question: str, text: int, times: Measurement | None) -> dict[str, Any]:
    from tokenops import __version__

    timing = None
    if times is not None:
        where = times.environment
        timing = {name: times.settings[name] for name in ("timer", "runs", "dtype", "attention")}
        timing |= {name: where[name] for name in ("machine", "processor", "threads", "torch")}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "tokenops_version": __version__,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "question": question,
        "text_tokens": text,
        "timing": timing,
    }
