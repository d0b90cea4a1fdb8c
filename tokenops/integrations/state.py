"""The pipeline at work inside one model: what the three wrapped methods do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.cache import LayerStore, attached_cache, kept_layer
from tokenops.integrations.families import Parts
from tokenops.integrations.layouts import Unit
from tokenops.integrations.probe import Sink, note_signals
from tokenops.integrations.routing import ROUTING, Routing, units_of, with_budgets
from tokenops.integrations.sequence import (
    Finish,
    begin_routed,
    begin_short,
    every_token,
    gated,
    new_validity,
)
from tokenops.integrations.visual import Decision, Placed, decide, place
from tokenops.integrations.wrap import LivesOnModel, eager, outermost
from tokenops.pipeline import Pipeline
from tokenops.routers.route import Route
from tokenops.stages import Prune, Stage
from tokenops.tokenmap import Selection

_UNIT = "_tokenops_unit"


class Call:
    """What one forward of the base model has shown so far."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.input_ids: Tensor | None = arguments.get("input_ids")
        self.text_embeds: Tensor | None = arguments.get("inputs_embeds")
        self.units: dict[str, list[Unit]] = {}


class _PerThread(threading.local):
    """What belongs to the call that a thread is in, and to the last one it made."""

    call: Call | None = None
    placed: tuple[Placed, ...] = ()
    decision: Decision | None = None
    routing: Routing | None = None


class State(LivesOnModel):
    """The pipeline at work in one model; lives on the model, so a deep copy has its own.

    Threads that share the model do not see each other's calls.
    """

    forgets: ClassVar = {"local": _PerThread}

    def __init__(self, parts: Parts, pipeline: Pipeline) -> None:
        self.family, self.pipeline = parts.family, pipeline
        self.token_ids = {
            kind: getattr(parts.base.config, name) for kind, name in parts.family.tokens.items()
        }
        self.sink: Sink | None = None
        stage = pipeline.stages.get("after_projector")
        self.stage = stage if isinstance(stage, Stage) else None
        route = pipeline.stages.get("layers")
        self.route = route if isinstance(route, Route) else None
        self.layers = len(parts.layers)
        self.local = _PerThread()

    @property
    def decision(self) -> Decision | None:
        """The decision of this thread's last call that had visual tokens."""
        return self.local.decision

    @property
    def routing(self) -> Routing | None:
        """What ran in each layer in this thread's last call that had visual tokens; None without a Route."""
        return self.local.routing

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The images and videos of this thread's last call that had some."""
        return self.local.placed

    # -- features: remember what each tensor of visual features is --------------------------------------

    @outermost
    def features(self, base: Any, original: Callable[..., Any], arguments: dict[str, Any], kind: str) -> Any:
        """Around ``get_image_features``: note the layout of every unit on its feature tensor."""
        if self.sink is not None:
            self.sink.take()  # what a recomputed backward pass or another caller of the tower left
        result = original(**arguments)
        features = getattr(result, "pooler_output", None)
        if features is not None:
            self._note(base, arguments, list(features), kind)
        return result

    @eager
    def _note(self, base: Any, arguments: dict[str, Any], features: Sequence[Tensor], kind: str) -> None:
        units = self.family.layout(base, arguments, features, kind)
        if self.sink is not None:
            self.sink.check(base.config, arguments)
            note_signals(self.sink, base, self.family, units)
        for unit, feature in zip(units, features, strict=True):
            setattr(feature, _UNIT, unit)
        if self.local.call is not None:
            self.local.call.units[kind] = units

    # -- the base model: text and images meet -----------------------------------------------------------

    @outermost
    def base(self, base: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around the base model's forward: keep the ids of this call at hand for the language model."""
        try:
            self._begin(arguments)
            return original(**arguments)
        finally:
            self._end()

    @eager
    def _begin(self, arguments: Mapping[str, Any]) -> None:
        self.local.call = call = Call(arguments)
        for kind, output in (arguments.get("mm_encoder_outputs") or {}).items():
            features = list(getattr(output, "pooler_output", None) or ())
            if features:
                call.units[kind] = [self._unit_of(f, kind) for f in features]

    @eager
    def _end(self) -> None:
        self.local.call = None

    @staticmethod
    def _unit_of(feature: Tensor, kind: str) -> Unit:
        unit = getattr(feature, _UNIT, None)
        if unit is None or unit.size != feature.shape[0]:
            raise TokenOpsError(
                "attach",
                f"{kind} features computed by the attached model, whole (no prefill_chunk_size)",
                f"unknown features of shape {tuple(feature.shape)}",
            )
        return unit

    # -- the language model: shorten, run, lift ---------------------------------------------------------

    @outermost
    def language(self, module: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around the language model's forward.

        What comes before and after it is eager; in between it compiles as if nothing were attached, with all
        its routed layers in one graph.
        """
        finish = self._begin_language(module, arguments)
        with attached_cache(arguments.get("past_key_values")):
            outputs = original(**arguments)
        return outputs if finish is None else self._end_language(outputs, finish)

    @eager
    def _begin_language(self, module: Any, arguments: dict[str, Any]) -> Finish | None:
        """Change the arguments of the language model; what is to be done with its outputs, if anything."""
        if arguments.get("inputs_embeds") is None:
            if kept_layer(arguments.get("past_key_values")) is None:
                return None
            arguments["inputs_embeds"] = module.get_input_embeddings()(arguments.pop("input_ids"))
        placed = self._place(module, arguments)
        decision = self._decide(arguments, placed)
        implementation, axes = module.config._attn_implementation, self.family.token_axes
        gate = None if decision is None else decision.over_sequence.gate
        chosen = None
        if isinstance(self.stage, Prune) and gate is not None:
            arguments.update(gated(arguments, gate, self.stage.gate, implementation))
        elif decision is not None and decision.dropped:
            chosen = decision.over_sequence
            if decision.embeds is not None:
                arguments["inputs_embeds"] = decision.embeds
        routing = self._routing(arguments, placed, chosen)
        if routing is not None:
            return begin_routed(arguments, routing, axes, implementation)
        if chosen is None and kept_layer(arguments.get("past_key_values")) is None:
            return None
        return begin_short(arguments, chosen, axes, implementation)

    @eager
    def _end_language(self, outputs: Any, finish: Finish) -> Any:
        return finish(outputs)

    def _place(self, module: Any, arguments: Mapping[str, Any]) -> list[Placed]:
        """The visual units of this call in its sequences."""
        call = self.local.call
        if call is None:
            return []
        if not call.units:
            self._check_no_placeholders(call, arguments.get("past_key_values"))
            return []
        units, call.units = call.units, {}
        self.local.decision = self.local.routing = None
        if self.pipeline.training != module.training:
            self.pipeline.train(module.training)
        placed = place(units, {kind: self._placeholders(module, call, kind) for kind in units})
        self.local.placed = tuple(placed)
        return placed

    def _decide(self, arguments: Mapping[str, Any], placed: list[Placed]) -> Decision | None:
        if self.stage is None or not placed:
            return None
        decision = decide(self.stage, arguments["inputs_embeds"], placed, new_validity(arguments))
        self.local.decision = decision
        return decision

    def _routing(
        self, arguments: Mapping[str, Any], placed: list[Placed], chosen: Selection | None
    ) -> Routing | None:
        """What layers do in this call, None where all run everything and always have."""
        embeds, cache = arguments["inputs_embeds"], arguments.get("past_key_values")
        kept = kept_layer(cache)
        before = kept is not None and kept.routed
        if self.route is None:
            if before:
                expected = "the pipeline that made this cache (its layers store different tokens)"
                raise TokenOpsError("attach", expected, repr(self.pipeline))
            return None
        if not placed and not before:
            return None
        b, length = embeds.shape[:2]
        units = units_of(placed, (b, length), chosen) if placed else None
        if units is not None and chosen is None and self.local.decision is not None:
            units = with_budgets(units, self.local.decision.over_sequence)
        chosen = every_token(arguments) if chosen is None else chosen
        store = LayerStore(cache, self.layers, b, embeds.device)
        routing = Routing(self.route, units, chosen, arguments.get("attention_mask"), store)
        if placed:
            self.local.routing = routing
        return routing if routing.drops or before else None

    def layer(self, number: int, module: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Around a decoder layer's forward."""
        routing = arguments.pop(ROUTING, None)
        if routing is None:
            return original(arguments.pop("hidden_states"), **arguments)
        return routing.layer(number, module, original, arguments)

    def _check_no_placeholders(self, call: Call, cache: Any) -> None:
        """A prompt brings its features; behind a cache, placeholders may be guesses of assisted decoding."""
        ids = call.input_ids
        if ids is None or ids.shape[1] == 1 or (cache is not None and cache.get_seq_length()):
            return
        if any(bool((ids == token).any()) for token in self.token_ids.values()):
            expected = "visual features together with their placeholders (no prefill_chunk_size)"
            raise TokenOpsError("attach", expected, "placeholders alone")

    def _placeholders(self, module: Any, call: Call, kind: str) -> Tensor:
        token = self.token_ids[kind]
        if call.input_ids is not None:
            return call.input_ids == token
        assert call.text_embeds is not None
        table = module.get_input_embeddings()
        embedded = table(torch.tensor(token, device=call.text_embeds.device))
        return (call.text_embeds == embedded.to(call.text_embeds.dtype)).all(-1)
