"""One language-model call on a shortened sequence: arguments down, outputs back up, cache told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.attention import NAME
from tokenops.integrations.cache import (
    check_can_shorten,
    kept_layer,
    remember,
    stored_source,
)
from tokenops.integrations.masks import for_backend, gated_mask, misread, query_validity, reduce_mask
from tokenops.integrations.routing import ROUTING, Routing
from tokenops.kernels.rows import gather_rows
from tokenops.tokenmap import Selection

_BACKENDS = (NAME, "sdpa", "eager")
Finish = Callable[[Any], Any]
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "cache", "block_tables")


def new_validity(arguments: Mapping[str, Any]) -> Tensor:
    """(b l) True for the real tokens among ``inputs_embeds``."""
    embeds = arguments["inputs_embeds"]
    return query_validity(arguments.get("attention_mask"), *embeds.shape[:2], embeds.device)


def every_token(arguments: Mapping[str, Any]) -> Selection:
    """The new tokens of a call, all of them; padding is filler."""
    b, length = arguments["inputs_embeds"].shape[:2]
    valid = new_validity(arguments)
    return Selection(torch.arange(length, device=valid.device).expand(b, length), valid, length)


def gated(arguments: dict[str, Any], gate: Tensor, how: str, implementation: str | None) -> dict[str, Any]:
    """Arguments for all tokens, weighted by the soft mask of training: features, or keys in every layer."""
    embeds = arguments["inputs_embeds"]
    if how == "multiply":
        return arguments | {"inputs_embeds": embeds * gate.to(embeds.dtype)[..., None]}
    if arguments.get("past_key_values") is not None:
        expected = "soft masks without a cache (model.eval() before generate)"
        raise TokenOpsError("attach", expected, type(arguments["past_key_values"]).__name__)
    if implementation not in _BACKENDS:
        raise TokenOpsError(
            "attach", "gate='attention' with tokenops, sdpa or eager attention", repr(implementation)
        )
    valid = new_validity(arguments)
    mask = gated_mask(arguments.get("attention_mask"), gate, valid, embeds.dtype)
    return arguments | {"attention_mask": mask, "position_ids": _positions(arguments, 0)}


def begin_short(
    arguments: dict[str, Any],
    chosen: Selection | None,
    token_axes: Mapping[str, int],
    implementation: str | None,
) -> Finish:
    """Shorten the arguments of the language model to the kept tokens; ``finish(outputs)`` lifts its outputs.

    ``chosen`` None keeps every new token, for calls that only continue a shortened cache.
    """
    embeds, cache = arguments["inputs_embeds"], arguments.get("past_key_values")
    b, length = embeds.shape[:2]
    _check_call(arguments, chosen, implementation)
    shorter = chosen is not None
    chosen = every_token(arguments) if chosen is None else chosen
    kept = kept_layer(cache)
    before = stored_source(cache, b, embeds.device)
    dropped = kept.dropped if kept is not None else 0
    seen = before.shape[1] + dropped
    arguments["position_ids"] = _positions(arguments, seen)
    given = arguments.get("attention_mask")
    mask = reduce_mask(given, chosen, before, seen, dropped)
    arguments["attention_mask"] = for_backend(mask, implementation, embeds.dtype)
    if shorter:
        _reduce_arguments(arguments, chosen, {"inputs_embeds": 1, **token_axes}, length)

    def finish(outputs: Any) -> Any:
        stored = getattr(outputs, "past_key_values", None) if cache is None else cache
        if stored is not None:
            source = torch.cat([before, torch.where(chosen.valid, chosen.index + seen, -1)], dim=1)
            ragged, filler = (kept.ragged, kept.filler) if kept is not None else (False, False)
            if shorter or length > 1:
                filler = filler or not bool(chosen.valid.all())
                ragged = ragged or misread(given, source, seen + length)
            remember(stored, source, length - chosen.k, ragged, filler)
        return _lift_outputs(outputs, chosen) if shorter else outputs

    return finish


def begin_routed(
    arguments: dict[str, Any], routing: Routing, token_axes: Mapping[str, int], implementation: str | None
) -> Finish:
    """Hand ``routing`` to the layers; ``finish(outputs)`` tells the cache what they ran."""
    embeds, tokens = arguments["inputs_embeds"], routing.tokens
    length = embeds.shape[1]
    _check_call(arguments, tokens, implementation)
    arguments["position_ids"] = _positions(arguments, routing.store.seen)
    # four-dimensional, so the model builds none; every layer gets its own
    arguments["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
    if tokens.k < length:
        _reduce_arguments(arguments, tokens, {"inputs_embeds": 1, **token_axes}, length)
    arguments[ROUTING] = routing
    return partial(_end_routed, cache=arguments.get("past_key_values"), routing=routing, length=length)


def _end_routed(outputs: Any, cache: Any, routing: Routing, length: int) -> Any:
    if len(routing.ran) < len(routing.plan):
        expected = "a language model that hands its keyword arguments on to its layers"
        raise TokenOpsError("attach", expected, f"{len(routing.ran)} of {len(routing.plan)} layers")
    tokens = routing.tokens
    cache = getattr(outputs, "past_key_values", None) if cache is None else cache
    if cache is not None:
        routing.store.remember(cache, routing.ran, length)
    routing.masks.clear()
    if routing.gone is not None and (gone := routing.gone.chosen) is not None:
        # a token that left keeps its last state in between, and at the end has that of the one before it
        inside = forward_fill(gone.reduce(outputs.last_hidden_state), gone)
        states = outputs.get("hidden_states")
        if states is not None and states[-1] is not None:
            outputs["hidden_states"] = (*states[:-1], inside)
        outputs["last_hidden_state"] = inside
    return _lift_outputs(outputs, tokens) if tokens.k < length else outputs


def _check_call(arguments: Mapping[str, Any], chosen: Selection | None, implementation: str | None) -> None:
    # other backends read positions with gaps as packed sequences, or masks by their own rules
    if implementation not in _BACKENDS:
        raise TokenOpsError("attach", "tokenops, sdpa or eager attention", repr(implementation))
    if chosen is None:
        return
    if chosen.k == 0:
        raise TokenOpsError("attach", "at least one token left in the batch", "none")
    check_can_shorten(arguments.get("past_key_values"))
    for name in _PACKED:
        if arguments.get(name) is not None:
            raise TokenOpsError("attach", "padded sequences, not packed or paged ones", name)
    positions, mask = arguments.get("position_ids"), arguments.get("attention_mask")
    if mask is None and isinstance(positions, Tensor) and (positions.ndim == 2 or positions.shape[0] == 4):
        text = positions if positions.ndim == 2 else positions[0]
        if text.shape[-1] > 1 and not bool((text.diff(dim=-1) == 1).all()):
            raise TokenOpsError("attach", "an attention_mask with these position_ids", "packed sequences")


def _positions(arguments: Mapping[str, Any], seen: int) -> Tensor:
    """The positions the model would use, made explicit before tokens go missing."""
    given, embeds = arguments.get("position_ids"), arguments["inputs_embeds"]
    if given is not None:
        return given
    return torch.arange(seen, seen + embeds.shape[1], device=embeds.device).expand(embeds.shape[:2])


def _reduce_arguments(
    arguments: dict[str, Any], chosen: Selection, axes: Mapping[str, int], length: int
) -> None:
    b = chosen.index.shape[0]
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if name in axes:
            axis = axes[name] % value.ndim
            arguments[name] = take_tokens(value, chosen, axis)
        elif value.ndim >= 2 and value.shape[:2] == (b, length) and name != "attention_mask":
            raise TokenOpsError("attach", f"the token axis of {name} in Family.token_axes", "none")


def take_tokens(x: Tensor, chosen: Selection, axis: int) -> Tensor:
    """Reduce ``x`` along its token axis; the axis before it is the batch (broadcast where it is 1)."""
    b = chosen.index.shape[0]
    if axis == 0:
        raise TokenOpsError("attach", "a batch axis before the token axis", tuple(x.shape))
    rows = x.movedim((axis - 1, axis), (0, 1))
    if rows.shape[0] == 1 and b != 1:
        rows = rows.expand(b, *rows.shape[1:])
    return chosen.reduce(rows).movedim((0, 1), (axis - 1, axis))


def forward_fill(y: Tensor, chosen: Selection) -> Tensor:
    """(b k ...) -> (b n ...): every token receives the row of the last kept token at or before it.

    Tokens before the first kept one receive the first; a row that keeps nothing, its filler.
    """
    mask, counts = chosen.mask, chosen.counts[:, None]
    first = chosen.k - counts
    slot = (first + mask.long().cumsum(1) - 1).clamp(min=0)
    return gather_rows(y, torch.maximum(slot, first.clamp(max=chosen.k - 1)))


def _lift_outputs(outputs: Any, chosen: Selection) -> Any:
    outputs["last_hidden_state"] = forward_fill(outputs.last_hidden_state, chosen)
    if outputs.get("hidden_states") is not None:
        outputs["hidden_states"] = tuple(
            None if h is None else forward_fill(h, chosen) for h in outputs.hidden_states
        )
    return outputs
