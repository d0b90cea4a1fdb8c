"""Run a pipeline inside a model: wrap a few instance methods, undo it without trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Family, Parts, find_parts
from tokenops.integrations.handles import AttachedHandle
from tokenops.integrations.layer_trace import layer_traces, mean_tokens
from tokenops.integrations.lens import put_lens, remove_lenses
from tokenops.integrations.probe import READS, find_tower, probe
from tokenops.integrations.route_checks import ROWS as _ROWS
from tokenops.integrations.route_checks import check_route
from tokenops.integrations.state import State
from tokenops.integrations.trace import Trace
from tokenops.integrations.visual import Decision, traces
from tokenops.integrations.wrap import Around, is_wrapped, unwrap, wrap
from tokenops.pipeline import Pipeline
from tokenops.signals import SIGNALS
from tokenops.stages import Stage

_STATE = "_tokenops"
_AVAILABLE = {"mask", "grid", *READS}


class Handle(AttachedHandle):
    """A pipeline attached to a model. A context manager; :meth:`remove` ends it.

    >>> from tokenops import attach, pocket, recipes
    >>> model, processor = pocket.load()
    >>> scene = pocket.scenes(1, "heldout", seed=1)[0]
    >>> inputs = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")
    >>> with attach(model, recipes.random(keep=0.25) | recipes.fastv(keep=0.125, layer=2)) as handle:
    ...     logits = model(**inputs).logits
    >>> handle.trace[0]
    Trace(after_projector: image 0 of sample 0, 36 of 144 tokens)
    >>> handle.tokens_per_layer, handle.decision.over_sequence.k
    ((36.0, 36.0, 4.0, 4.0), 42)
    >>> handle.tokens, handle.model is model, handle.pipeline.stages.keys(), handle.attached
    ({'image': 4}, True, dict_keys(['after_projector', 'layers']), False)
    >>> handle.remove()  # a second time: nothing
    """

    _state: State

    def __init__(self, parts: Parts, state: State) -> None:
        super().__init__(parts.model, state)
        self._parts = parts

    @property
    def tokens(self) -> Mapping[str, int]:
        """Kind of visual unit -> id of its placeholder."""
        return self._state.token_ids

    @property
    def trace(self) -> tuple[Trace, ...]:
        """What was kept in the last call that had visual tokens, one entry per place and image or video.

        Stage ``"after_projector"`` first, then ``"layers"``, one entry for every routed layer and image.
        """
        state, decision = self._state, self._state.decision
        before = () if decision is None else traces("after_projector", decision)
        if state.routing is None:
            return before
        return before + layer_traces(state.routing, state.placed, before, state.layers)

    @property
    def tokens_per_layer(self) -> tuple[float, ...]:
        """Visual tokens that ran in each layer in the last call that had some, mean over images and videos.

        At equal means methods cost the same, whether they prune, route or both.
        """
        state = self._state
        return mean_tokens(state.routing, state.placed, state.decision, state.layers)

    @property
    def decision(self) -> Decision | None:
        """The decision of the last call that had visual tokens, with its gate in training."""
        return self._state.decision

    @property
    def attached(self) -> bool:
        """Whether the model still runs this pipeline."""
        return self._parts.base.__dict__.get(_STATE) is self._state

    def _places(self) -> list[tuple[Any, str]]:
        return [(module, method) for module, method, _ in _wanted_places(self._parts, self.pipeline)]

    def _restore(self) -> None:
        _detach(self._parts)


def attach(model: nn.Module, pipeline: Pipeline, *, family: Family | None = None) -> Handle:
    """:func:`tokenops.attach` for a model of transformers."""
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("attach", "a Pipeline", type(pipeline).__name__)
    parts = find_parts(model, family)
    if _STATE in parts.base.__dict__:
        raise TokenOpsError("attach", "a model without a pipeline (join them with |)", "one attached already")
    _check_language_model(parts.language_model.config)
    wanted = _check_stages(parts, pipeline)
    state = State(parts, pipeline)
    try:
        if wanted & set(READS):
            state.sink = probe(parts, wanted & set(READS))
        if "layers" in pipeline.stages and set(pipeline.stages["layers"].needs()) & _ROWS:
            for layer in parts.layers:
                put_lens(layer.self_attn)
        for module, method, around in _wanted_places(parts, pipeline):
            module.__dict__[_STATE] = state
            wrap(module, method, around)
    except BaseException:
        _detach(parts)
        raise
    return Handle(parts, state)


def attached(model: nn.Module) -> Handle | None:
    """The handle of the pipeline a model runs, None without one; also of a deep copy of an attached model."""
    for module in model.modules():
        state = module.__dict__.get(_STATE)
        if state is not None:
            parts = find_parts(model, state.family)
            return Handle(parts, state)
    return None


def _places(parts: Parts) -> Iterator[tuple[Any, str, Around]]:
    """What attach wraps: module, method, wrapper."""
    for method, kind in parts.family.features.items():
        yield parts.base, method, _features(kind)
    yield parts.base, "forward", _base
    yield parts.language_model, "forward", _language
    for number, layer in enumerate(parts.layers):
        yield layer, "forward", _layer(number)


def _wanted_places(parts: Parts, pipeline: Pipeline) -> Iterator[tuple[Any, str, Around]]:
    """Without routes the layers stay as they are."""
    routed = "layers" in pipeline.stages
    layers = {id(layer) for layer in parts.layers}
    yield from (place for place in _places(parts) if routed or id(place[0]) not in layers)


def _detach(parts: Parts) -> None:
    for module, method, _ in _places(parts):
        if is_wrapped(module, method):
            unwrap(module, method)
    remove_lenses(parts.vision_tower)
    remove_lenses(parts.language_model)
    for module in (parts.base, parts.language_model, *parts.layers):
        module.__dict__.pop(_STATE, None)


# The wrappers find the state on the module they run on, so that a deep copy uses its own.


def _features(kind: str) -> Callable[..., Any]:
    def around(base: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return base.__dict__[_STATE].features(base, original, arguments, kind)

    return around


def _base(base: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return base.__dict__[_STATE].base(base, original, arguments)


def _language(module: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return module.__dict__[_STATE].language(module, original, arguments)


def _layer(number: int) -> Around:
    def around(layer: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return layer.__dict__[_STATE].layer(number, layer, original, arguments)

    return around


def _check_language_model(config: Any) -> None:
    """Distances between kept tokens are not those of the sequence, so attention windows would be wrong."""
    kinds = getattr(config, "layer_types", None)
    windowed = {"sliding_window"} if kinds is None and getattr(config, "sliding_window", None) else set()
    windowed |= set(kinds or ()) - {"full_attention"}
    if windowed:
        raise TokenOpsError("attach", "a language model with full attention", ", ".join(sorted(windowed)))


def _check_stages(parts: Parts, pipeline: Pipeline) -> set[str]:
    """Signals the pipeline needs, after a trial of every stage on empty features of this model."""
    table = parts.language_model.get_input_embeddings().weight
    wanted: set[str] = set()
    for name, stage in pipeline.stages.items():
        if name == "layers":
            check_route(parts, stage)
            continue
        if not isinstance(stage, Stage):
            raise TokenOpsError("attach", f"a Prune stage or a Merge stage at {name}", type(stage).__name__)
        required = {s for s, must in stage.needs().items() if must}
        if missing := required - _AVAILABLE:
            what = ", ".join(f"{s} ({SIGNALS.get(s, 'unknown')})" for s in sorted(missing))
            raise TokenOpsError("attach", f"signals among {', '.join(sorted(_AVAILABLE))}", what)
        wanted |= required | _possible(parts, set(stage.needs()) - required)
        for parameter in stage.parameters():
            if parameter.device != table.device:
                raise TokenOpsError("attach", f"{name} on {table.device}", parameter.device)
        _try_stage(name, stage, table, wanted)
    return wanted


def _possible(parts: Parts, optional: set[str]) -> set[str]:
    """Optional signals that this model can give."""
    can = set()
    for signal in optional & set(READS):
        try:
            find_tower(parts, signal)
        except TokenOpsError:
            continue
        can.add(signal)
    return can


def _try_stage(name: str, stage: Stage, table: Tensor, wanted: set[str]) -> None:
    x = table.new_zeros(1, 4, table.shape[1])
    grid = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in (1, 2, 2)))[None]
    mask = torch.ones(1, 4, dtype=torch.bool, device=x.device)
    signals: dict[str, Tensor | None] = {"grid": grid}
    for signal in wanted & set(READS):
        shape = (1, 4, 1) if signal == "vision_keys" else (1, 4)
        signals[signal] = x.new_full(shape, 0.25, dtype=torch.float32)
    modes = [(m, m.training) for m in stage.modules()]
    devices = [x.device] if x.is_cuda else []
    try:
        stage.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            stage.merge(x, stage.select(x, mask, signals), mask, signals)
    except TokenOpsError:
        raise
    except Exception as error:
        raise TokenOpsError("attach", f"{name} to run on features (b, n, {x.shape[2]})", error) from error
    finally:
        for module, mode in modes:
            module.training = mode
