"""One language-model call with routed layers: who runs in each layer, by which mask, into which cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenops.integrations.attention import NAME
from tokenops.integrations.cache import LayerStore, Ran
from tokenops.integrations.lens import attention_row, implementation_of, lens_of
from tokenops.integrations.masks import for_backend, key_validity, reduce_4d
from tokenops.integrations.packing import Packing
from tokenops.integrations.plan import Share, numbers_of, plan_of
from tokenops.integrations.visual import Placed
from tokenops.kernels.rows import gather_rows
from tokenops.routers.route import Route
from tokenops.routers.units import Units
from tokenops.tokenmap import Selection


def units_of(placed: Sequence[Placed], shape: tuple[int, int], over: Selection | None) -> Units:
    """The units of a call, after ``over`` shortened its sequences of ``shape`` (b l)."""
    device = placed[0].positions.device
    unit = torch.full(shape, -1, dtype=torch.long, device=device)
    line = torch.full_like(unit, -1)
    lines = 0
    for number, p in enumerate(placed):
        unit[p.row, p.patches] = number
        if p.unit.line is not None:
            of_unit = p.unit.line.to(device)
            line[p.row, p.positions] = torch.where(of_unit >= 0, of_unit + lines, -1)
            lines += p.unit.size
    if over is not None:
        unit = torch.where(over.valid, gather_rows(unit, over.index), -1)
        line = torch.where(over.valid, gather_rows(line, over.index), -1)
    return Units.of(unit, line if lines else None)


def with_budgets(units: Units, hard: Selection) -> Units:
    """Budgets that count a hard choice among the tokens, as at inference, while all of them run softly."""
    counts = (hard.mask.flatten()[units.places] & units.real).sum(1)
    return replace(units, sizes=tuple(counts.tolist()))


ROUTING = "tokenops_routing"
"""The keyword under which a call hands its routing to its layers, those that checkpointing replays too."""


class Routing:
    """The state of one call.

    Python reads the device once, here. What the layers do afterwards depends on these numbers and on tensors,
    so that it compiles to one graph, which serves every call with the same numbers: counts of tokens.

    Args:
        route: None where only a cache made by routing goes on.
        units: of the new tokens that enter the language model, None without visual tokens.
        tokens: those tokens among the l new ones of the call, a Selection of (b l).
        given: the caller's attention mask.
        store: what the cache holds, layer by layer.
    """

    def __init__(
        self, route: Route | None, units: Units | None, tokens: Selection, given: Any, store: LayerStore
    ) -> None:
        self.route, self.units, self.tokens, self.given, self.store = route, units, tokens, given, store
        rows, (self.hides, self.hidden), there, text, breaks = numbers_of(units, tokens, given, store)
        self.all = Ran(None, tokens, rows)
        self.plan: list[Share | None] = [None] * len(store.source)
        if route is not None and units is not None:
            self.plan = plan_of(route, units, there, text, breaks, len(store.source))
        self.alive: Tensor | None = None
        self.gone: Ran | None = None
        self.ran: dict[int, Ran] = {}
        self.row: Tensor | None = None
        self.masks: dict[Any, Any] = {}

    # -- who runs ---------------------------------------------------------------------------------------

    @property
    def drops(self) -> bool:
        """Whether any layer leaves a token out."""
        return any(share is not None for share in self.plan)

    def choose(self, layer: int, module: Any, arguments: Mapping[str, Any]) -> Ran:
        """The tokens that run in this layer."""
        if layer in self.ran:  # recomputed by checkpointing
            return self.ran[layer]
        share = self.plan[layer]
        ran = self.all if self.gone is None else self.gone
        if share is not None and share.asks:
            chosen = self._ask(layer, module, arguments, share)
            rows = share.rows
            if rows is None and not torch.compiler.is_compiling():
                rows = (chosen.k,) if chosen.index.shape[0] == 1 else tuple(chosen.counts.tolist())
            ran = Ran(chosen, compose(self.tokens, chosen), rows)
            if self.route is not None and self.route.fate == "exit":
                self.alive = chosen.mask
                self.gone = replace(ran, chosen=replace(chosen, scores=None))
        self.ran[layer] = ran
        return ran

    @torch.no_grad()
    def _ask(self, layer: int, module: Any, arguments: Mapping[str, Any], share: Share) -> Selection:
        assert self.route is not None
        assert self.units is not None
        x = module.input_layernorm(arguments["hidden_states"])
        here = self.tokens.valid if self.alive is None else self.tokens.valid & self.alive
        wanted = self.route.needs()
        signals: dict[str, Any] = {}
        if "rope" in wanted:
            signals["rope"] = arguments["position_embeddings"]
        if "last_attention" in wanted:
            signals["last_attention"] = self.row
        if "next_attention" in wanted:
            signals["next_attention"] = self._own_row(layer, module, x, here, arguments)
        chosen, _ = self.route.split(
            x,
            layer=layer,
            units=self.units,
            mask=self.tokens.valid if self.all.filled else None,
            alive=self.alive,
            k=share.most if share.rows is not None or torch.compiler.is_compiling() else None,
            **signals,
        )
        return chosen

    def _own_row(
        self, layer: int, module: Any, x: Tensor, here: Tensor, arguments: Mapping[str, Any]
    ) -> Tensor:
        """The last token's attention in this layer, from a call of its projections alone."""
        found: list[Tensor] = []
        past, cache = self.store.valid(layer, self.given), arguments.get("past_key_values")
        stored = past.shape[1]

        def look(query: Tensor, key: Tensor, scale: float) -> None:
            key = torch.cat([cache.layers[layer].keys, key], 2) if stored and cache is not None else key
            row = attention_row(query, key, scale, _last(here), torch.cat([past, here], 1))
            found.append(row[:, stored:])

        with lens_of(module.self_attn).armed(look, only=True):
            module.self_attn(
                hidden_states=x, attention_mask=None, position_embeddings=arguments["position_embeddings"]
            )
        return found[0]

    def _watch(self, layer: int, module: Any, chosen: Selection | None) -> AbstractContextManager[None]:
        """Inside, keep the last token's attention in this layer for the next, if that asks for it."""
        if not self._watched(layer + 1):
            return nullcontext()
        valid = self.tokens.valid if chosen is None else chosen.valid
        past = self.store.valid(layer, self.given)

        @torch.no_grad()
        def look(query: Tensor, key: Tensor, scale: float) -> None:
            row = attention_row(query, key, scale, _last(valid), torch.cat([past, valid], 1))
            row = row[:, past.shape[1] :]
            self.row = (
                row if chosen is None else chosen.lift(row, into=row.new_zeros(valid.shape[0], chosen.n))
            )

        return lens_of(module.self_attn).armed(look)

    # -- one layer --------------------------------------------------------------------------------------

    def layer(self, layer: int, module: Any, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run a decoder layer on the tokens chosen for it; the others pass it by."""
        x = arguments["hidden_states"]
        ran = self.choose(layer, module, arguments)
        chosen = ran.chosen
        arguments = {**arguments, "attention_mask": self._mask(layer, ran, arguments, module)}
        del arguments["hidden_states"]  # by position, where reentrant checkpointing looks for gradients
        if chosen is None:
            with self._watch(layer, module, chosen):
                return call(x, **arguments)
        assert self.route is not None
        if isinstance(arguments.get("position_ids"), Tensor):
            arguments["position_ids"] = _take(arguments["position_ids"], chosen)
        arguments["position_embeddings"] = tuple(_take(t, chosen) for t in arguments["position_embeddings"])
        with self._watch(layer, module, chosen):
            out = call(chosen.reduce(x), **arguments)
        if isinstance(out, tuple):
            return (self.route.merge(out[0], chosen, x), *out[1:])
        return self.route.merge(out, chosen, x)

    def _watched(self, layer: int) -> bool:
        if self.route is None or layer == len(self.plan) or "last_attention" not in self.route.needs():
            return False
        share = self.plan[layer]
        return share is not None and share.asks

    def _mask(self, layer: int, ran: Ran, arguments: Mapping[str, Any], module: Any) -> Any:
        implementation, dtype = implementation_of(module.self_attn), arguments["hidden_states"].dtype
        source, seen = self.store.source[layer], self.store.seen
        given = next(iter(self.given.values())) if isinstance(self.given, Mapping) else self.given
        if isinstance(given, Tensor) and given.ndim == 4:
            return for_backend(reduce_4d(given, ran.tokens, source, seen), implementation, dtype)
        past, queries = source.shape[1], ran.tokens.k
        filled = ran.filled or (past > 0 and (self.hides or self.store.filler[layer]))
        if not filled and implementation != "eager" and (queries == 1 or past == 0):
            return None
        behind = -1 if past == 0 else layer if self.hidden else self.store.group[layer]
        key = (ran.pattern(layer), behind) if filled else (past, queries)
        if key not in self.masks:
            valid = torch.cat([key_validity(given, source, seen), ran.tokens.valid], 1)
            self.masks[key] = _layer_mask(valid, queries, filled, implementation, dtype)
        return self.masks[key]


def compose(first: Selection, then: Selection) -> Selection:
    """What ``then`` keeps of what ``first`` kept."""
    index, valid = gather_rows(first.index, then.index), gather_rows(first.valid, then.index) & then.valid
    return Selection(index, valid, first.n)


def _take(t: Tensor, chosen: Selection) -> Tensor:
    """Rows of (b l ...) or (1 l ...) that were chosen."""
    return chosen.reduce(t.expand(chosen.index.shape[0], *t.shape[1:]))


def _last(valid: Tensor) -> Tensor:
    """(b) the last True of each row."""
    return (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(1)


def _layer_mask(
    valid: Tensor, queries: int, filled: bool, implementation: str | None, dtype: torch.dtype
) -> Any:
    """Causality over the real keys ``valid`` (b k) in the form the attention takes."""
    if implementation == NAME and not torch.compiler.is_compiling():
        return Packing(valid, queries)
    return for_backend(_causal(valid, queries, filled), implementation, dtype)


def _causal(valid: Tensor, queries: int, filled: bool) -> Tensor:
    """(b 1 q k) True where a key may be seen; the queries are the last keys; ``valid`` (b k)."""
    keys = valid.shape[1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=valid.device).tril(keys - queries)
    if not filled:
        return seen[None, None]
    own = torch.eye(queries, dtype=torch.bool, device=valid.device)
    own = torch.nn.functional.pad(own, (keys - queries, 0))
    # a filler query sees itself too, so that no softmax runs over nothing
    return (seen & valid[:, None, None]) | (own & ~valid[:, None, -queries:, None])
