"""Whether a Route fits a model, found out before anything is attached."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Parts
from tokenops.routers.route import Route
from tokenops.routers.units import Units
from tokenops.signals import SIGNALS

ROWS = {"last_attention", "next_attention"}
_AVAILABLE = {"mask", "visual", "rope", *ROWS}


def check_route(parts: Parts, route: nn.Module) -> None:
    """Try the scorer of every routed layer on empty hidden states of the model.

    Raises:
        TokenOpsError: no Route; a layer the model does not have or no scorer for one; a signal that is not
            there; parameters on another device; a scorer that does not run.
    """
    if not isinstance(route, Route):
        raise TokenOpsError("attach", "a Route at layers", type(route).__name__)
    missing = {name for name, must in route.needs().items() if must} - _AVAILABLE
    if missing:
        what = ", ".join(f"{s} ({SIGNALS.get(s, 'unknown')})" for s in sorted(missing))
        raise TokenOpsError("attach", f"signals among {', '.join(sorted(_AVAILABLE))}", what)
    weight = parts.language_model.get_input_embeddings().weight
    for parameter in route.parameters():
        if parameter.device != weight.device:
            raise TokenOpsError("attach", f"layers on {weight.device}", parameter.device)
    check_depth(len(parts.layers), route)
    for layer in range(len(parts.layers)):
        if route.schedule(layer) is not None:
            _try(parts, route, layer)


def check_depth(depth: int, route: Route) -> None:
    """A schedule or scorers for layers that are not there would be ignored.

    Raises:
        TokenOpsError: there are some.
    """
    starts = getattr(route.keep, "starts", (0,))
    numbers = [int(layer) for layer in route.scorer] if isinstance(route.scorer, nn.ModuleDict) else [0]
    beyond = [layer for layer in (*starts, *numbers) if layer >= depth]
    if beyond or getattr(route.keep, "depth", depth) not in (None, depth):
        raise TokenOpsError("attach", f"a route for {depth} layers", repr(route))


def _try(parts: Parts, route: Route, layer: int) -> None:
    if layer == 0 and "last_attention" in route.needs():
        raise TokenOpsError("attach", "last_attention from layer 1 on", "layer 0, which has none before it")
    weight = parts.language_model.get_input_embeddings().weight
    x = weight.new_zeros(1, 4, weight.shape[1])
    head = getattr(parts.layers[layer].self_attn, "head_dim", 2)
    rows = ROWS & set(route.needs())
    signals: dict[str, Any] = {name: x.new_zeros(1, 4, dtype=torch.float32) for name in rows}
    if "rope" in route.needs():
        signals["rope"] = (x.new_ones(1, 4, head), x.new_zeros(1, 4, head))
    units = Units.of(torch.tensor([[-1, 0, 0, -1]], device=x.device))
    devices = [x.device] if x.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            route.split(x, layer=layer, units=units, **signals)
    except TokenOpsError:
        raise
    except Exception as error:
        expected = f"the scorer of layer {layer} to run on (b, n, {x.shape[2]})"
        raise TokenOpsError("attach", expected, error) from error
