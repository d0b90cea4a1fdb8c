"""A frozen model run layer by layer over many samples: one layer's inputs are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.attaching import attach
from tokenops.integrations.families import Family, find_parts
from tokenops.integrations.lens import put_lens, remove_lenses
from tokenops.integrations.masks import query_validity
from tokenops.recipes import uniform
from tokenops.routers import attention_scores


def shown(layers: range, what: str, progress: bool) -> Iterable[int]:
    """The numbers, with a progress bar or without."""
    if not progress:
        return layers
    from tqdm.auto import tqdm

    return tqdm(layers, what)


def prompt_on(device: torch.device, inputs: Any, who: str) -> dict[str, Any]:
    """Processor outputs on a device, without labels.

    Raises:
        TokenOpsError: something that is no mapping with ``input_ids``.
    """
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise TokenOpsError(who, "processor outputs with input_ids", type(inputs).__name__)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items() if k != "labels"}


class _Stop(Exception):
    """Raised in the first decoder layer: nothing behind it is needed."""


@dataclass(eq=False)
class Stream:
    """One batch of samples at one layer.

    Attributes:
        hidden: (b l d), the layer's input.
        arguments: the other arguments of the layer's forward.
        visual: (b l) True at visual tokens.
        mask: (b l) False at padding.
    """

    hidden: Tensor
    arguments: dict[str, Any]
    visual: Tensor
    mask: Tensor


@torch.no_grad()
def streams(
    model: nn.Module, data: Iterable[Mapping[str, Any]], family: Family | None = None
) -> Iterator[Stream]:
    """The inputs of the first decoder layer for processor outputs with visual tokens.

    Raises:
        TokenOpsError: an item that is no mapping, or one without visual tokens.
    """
    parts = find_parts(model, family)
    device = next(model.parameters()).device
    for number, inputs in enumerate(data):
        moved = prompt_on(device, inputs, "calibrate")
        seen: dict[str, Any] = {}

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seen: Any = seen) -> None:
            seen.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])
            raise _Stop

        hook = parts.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with attach(model, uniform(1.0), family=family) as handle, suppress(_Stop):
                parts.model(**moved, use_cache=False)
        finally:
            hook.remove()
        if (decision := handle.decision) is None:
            raise TokenOpsError("calibrate", "visual tokens in every item", f"none in item {number}")
        hidden = seen.pop("hidden_states")
        visual = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        for group in decision.groups:
            for placed in group:
                visual[placed.row, placed.patches] = True
        mask = query_validity(moved.get("attention_mask"), *hidden.shape[:2], hidden.device)
        seen["past_key_values"] = None
        yield Stream(hidden, seen, visual & mask, mask)


@torch.no_grad()
def teacher(layer: Any, stream: Stream, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The layer's normed input (b l d) and its own attention scores (b l) of the visual tokens."""
    x = layer.input_layernorm(stream.hidden)
    found: list[Tensor] = []

    def look(query: Tensor, key: Tensor, scale: float) -> None:
        visual, mask = stream.visual, stream.mask
        found.append(attention_scores(query, key, visual=visual, mask=mask, causal=causal, scale=scale))

    angles = stream.arguments["position_embeddings"]
    lens = put_lens(layer.self_attn)
    try:
        with lens.armed(look, only=True):
            layer.self_attn(hidden_states=x, attention_mask=None, position_embeddings=angles)
    finally:
        remove_lenses(layer)
    return x, found[0]


@torch.no_grad()
def advance(layer: Any, stream: Stream) -> None:
    """Replace the input of a layer by its output, the input of the next."""
    out = layer(stream.hidden, **stream.arguments)
    stream.hidden = out[0] if isinstance(out, tuple) else out
