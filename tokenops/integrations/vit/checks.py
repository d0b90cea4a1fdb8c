"""Whether a pipeline fits a vision transformer, found out before anything is attached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.route_checks import check_depth
from tokenops.integrations.vit.call import Call
from tokenops.integrations.vit.parts import ATTENTION, VitParts
from tokenops.pipeline import Pipeline
from tokenops.routers.route import Route
from tokenops.signals import SIGNALS
from tokenops.stages import Stage

_TEXT = {"last_attention", "next_attention"}


def check(parts: VitParts, pipeline: Pipeline) -> None:
    """Try every stage on empty features of the model.

    Raises:
        TokenOpsError: a component of another kind, for other blocks or on another device; a signal that is
            not there; a component that does not run.
    """
    for place, stage in pipeline.stages.items():
        for parameter in stage.parameters():
            if parameter.device != parts.weight.device:
                raise TokenOpsError("attach", f"{place} on {parts.weight.device}", parameter.device)
    before, route = pipeline.stages.get("after_projector"), pipeline.stages.get("layers")
    if before is not None:
        if not isinstance(before, Stage):
            got = type(before).__name__
            raise TokenOpsError("attach", "a Prune stage or a Merge stage at after_projector", got)
        _check_signals("after_projector", before.needs(), {"mask", "grid"})
        trial = Call(before, None, parts.prefix, (2, 2))
        _try(parts, before, "after_projector", lambda: trial.enter(_empty(parts)))
    if route is not None:
        if not isinstance(route, Route):
            raise TokenOpsError("attach", "a Route at layers", type(route).__name__)
        _check_signals("layers", route.needs(), {"mask", "visual", "grid"} | parts.signals())
        check_depth(len(parts.blocks), route)
        for layer, block in enumerate(parts.blocks):
            if route.schedule(layer) is not None:
                _try_layer(parts, route, layer, block)


def _check_signals(place: str, wanted: dict[str, bool], there: set[str]) -> None:
    missing = sorted({name for name, must in wanted.items() if must} - there)
    if not missing:
        return
    what = ", ".join(f"{s} ({SIGNALS.get(s, 'unknown')})" for s in missing)
    why = ""
    if _TEXT & set(missing):
        why = " (a vision transformer has no text)"
    elif ATTENTION & set(missing):
        why = " (no attention before the first block)" if place == "after_projector" else ""
    raise TokenOpsError("attach", f"at {place} signals among {', '.join(sorted(there))}{why}", what)


def _try_layer(parts: VitParts, route: Route, layer: int, block: Any) -> None:
    wanted = ATTENTION & {name for name, must in route.needs().items() if must}
    if layer == 0 and wanted:
        got = "block 0, which has none before it"
        raise TokenOpsError("attach", f"{', '.join(sorted(wanted))} from block 1 on", got)
    x = _empty(parts)
    trial = Call(None, route, parts.prefix, (2, 2))
    trial.enter(x)
    if layer:
        rows = ATTENTION & set(route.needs()) & parts.signals()
        trial.rows[layer] = {name: x.new_zeros(x.shape[:2], dtype=torch.float32) for name in rows}
    _try(parts, route, f"the scorer of block {layer}", lambda: trial.ask(layer, block, x, None))


def _empty(parts: VitParts) -> torch.Tensor:
    return parts.weight.new_zeros(1, parts.prefix + 4, parts.model.embed_dim)


def _try(parts: VitParts, stage: nn.Module, what: str, run: Callable[[], object]) -> None:
    modes = [(m, m.training) for m in stage.modules()]
    devices = [parts.weight.device] if parts.weight.is_cuda else []
    try:
        stage.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            run()
    except TokenOpsError:
        raise
    except Exception as error:
        expected = f"{what} to run on features (b, n, {parts.model.embed_dim})"
        raise TokenOpsError("attach", expected, error) from error
    finally:
        for module, mode in modes:
            module.training = mode
