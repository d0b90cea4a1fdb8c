"""Contenders of ``gpu_prefill.py``: the pipelines, and a model run with each of them, compiled or not."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import tokenops
from tokenops import Pipeline, recipes
from tokenops.routers import LowRankAttention
from tokenops.selectors.scorers import LearnedScorer

# compiling takes a minute or more each: there, what the bars are about
COMPILED = ("unattached", "prune 20 %", "route 11 %")
MODES = {"eager": None, "compiled": "default", "reduce-overhead": "reduce-overhead"}
KEEPS, ROUTED, RANK = (0.1, 0.2, 0.3), 1 / 9, 256


def pipelines(config: Any, device: torch.device) -> dict[str, Pipeline | None]:
    """The contenders by name, with parameters on the device."""
    text = config.text_config
    width, heads = text.hidden_size, text.num_attention_heads
    qwen = config.model_type == "qwen2_5_vl"
    torch.manual_seed(0)
    with device:
        factors = {
            layer: LowRankAttention(
                width,
                min(RANK, width),
                heads=heads,
                kv_heads=text.num_key_value_heads,
                bias=qwen,
                scale=(width / heads) ** -0.5 / heads,
                causal=False,
            )
            for layer in range(text.num_hidden_layers)
        }
        prune = {f"prune {k:.0%}".replace("%", " %"): LearnedScorer(width) for k in KEEPS}
    made: dict[str, Pipeline | None] = {"unattached": None}
    for (name, scorer), keep in zip(prune.items(), KEEPS, strict=True):
        made[name] = recipes.visionselector(scorer, keep)
    made["route 11 %"] = recipes.alvts(factors, ROUTED)
    return {name: pipeline and pipeline.eval() for name, pipeline in made.items()}


def sharing(model: Any) -> Any:
    """A copy of the modules on the same weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


@contextmanager
def compiling(mode: str) -> Iterator[Callable[[Any], Callable[..., Any]]]:
    """What makes a model's forward run in a mode; nothing compiled is left afterwards."""
    how = MODES[mode]
    if how is None:
        yield lambda model: model
        return

    def compiled(model: Any) -> Callable[..., Any]:
        made = torch.compile(model, mode=how, dynamic=False)

        def call(**inputs: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # what the call before returned is not read again
            return made(**inputs)

        return call

    try:
        # every contender has modules of its own, whose forwards share their code
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
            torch._dynamo.utils.counters.clear()
            yield compiled
    finally:
        torch._dynamo.reset()


@contextmanager
def running(
    model: Any, mode: str, wanted: dict[str, Pipeline | None], inputs: Any
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Prefill calls by name, each on a copy of the model with its pipeline attached."""
    handles, calls = [], {}
    try:
        with compiling(mode) as ready:
            for name, pipeline in wanted.items():
                own = sharing(model)
                if pipeline is not None:
                    handles.append(tokenops.attach(own, pipeline))
                run = ready(own)
                calls[name] = lambda run=run: run(**inputs, use_cache=True, logits_to_keep=1)
            yield calls
    finally:
        for handle in handles:
            handle.remove()
        calls.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
