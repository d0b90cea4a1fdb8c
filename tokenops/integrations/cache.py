"""A cache whose layers report tokens *seen* and store tokens *kept*.

``generate`` slices prompts, and models number positions, by the cache's length; both count original tokens.
Masks on the other hand need to know what is stored. A :class:`KeptLayer` answers each question with its own
number, so decoding, default positions and a second turn come out right on a shortened cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tokenops.errors import TokenOpsError
from tokenops.integrations.masks import key_validity
from tokenops.integrations.wrap import eager
from tokenops.tokenmap import Selection


class KeptLayer(DynamicLayer):
    """A :class:`DynamicLayer` that knows which original token each of its entries is.

    Attributes:
        source: (b stored) long, original index of every entry; -1 for filler of ragged rows.
        dropped: tokens seen and not stored, the same in every row.
        ragged: the caller's mask, right-aligned, does not tell which entries are real.
        filler: some row may hold filler.
        group: layers of one cache with the same number hold their filler in the same places.
        routed: the layers of this cache store different tokens.
        floor: () long; all layers store every token from this one on, so that all can be cropped to it.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.source: Tensor | None = None
        self.dropped = 0
        self.ragged = self.filler = self.routed = False
        self.attached = False
        self.group = 0
        self.floor: Tensor | None = None

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return super().get_seq_length() + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(entries after this call, index of the first one) for the causal mask."""
        return super().get_seq_length() + query_length, self.dropped

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; a ragged cache refuses to go on without the mask an attached pipeline supplies."""
        if self.ragged and not self.attached:
            raise TokenOpsError(
                "cache", "the pipeline that shortened it attached (rows hold filler)", "a detached model"
            )
        return super().update(key_states, value_states, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, all of which must still be stored."""
        if not self.is_initialized or tokens_to_remove == 0 or self.source is None:
            return
        seen = self.get_seq_length()
        if tokens_to_remove > 0:  # a length, the older meaning
            if tokens_to_remove >= seen:
                return
            tokens_to_remove -= seen
        tail = self.source[:, tokens_to_remove:]
        expected = torch.arange(seen + tokens_to_remove, seen, device=tail.device)
        stored = tail.shape[1] == -tokens_to_remove and bool((tail == expected).all())
        above = self.floor is None or seen + tokens_to_remove >= int(self.floor)
        if not above or not stored:
            raise TokenOpsError(
                "cache.crop", "to remove tokens that are all stored", f"{-tokens_to_remove} of {seen}"
            )
        super().crop(tokens_to_remove)
        self.source = self.source[:, :tokens_to_remove]

    def reset(self) -> None:
        """Empty."""
        super().reset()
        self.source, self.dropped, self.group, self.floor = None, 0, 0, None
        self.ragged = self.filler = self.routed = False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder rows for beam search."""
        super().reorder_cache(beam_idx)
        if self.source is not None:
            self.source = self.source.index_select(0, beam_idx.to(self.source.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        if self.source is not None:
            self.source = self.source.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        if self.source is not None:
            self.source = self.source[indices]


def kept_layer(cache: Any) -> KeptLayer | None:
    """The first shortened layer of a cache, or None."""
    layers = getattr(cache, "layers", None)
    return layers[0] if layers and isinstance(layers[0], KeptLayer) else None


def check_can_shorten(cache: Any) -> None:
    """Refuse caches that would be silently wrong once tokens are dropped.

    Raises:
        TokenOpsError: anything but a DynamicCache of plain layers.
    """
    if cache is None:
        return
    expected = "a DynamicCache (not static, sliding, quantized or paged)"
    if not isinstance(cache, Cache) or not isinstance(cache, DynamicCache):
        raise TokenOpsError("attach", expected, type(cache).__name__)
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, KeptLayer):
            raise TokenOpsError("attach", expected, type(layer).__name__)


def stored_source(cache: Any, batch: int, device: torch.device) -> Tensor:
    """(b stored) original index of every token the first layer stores; -1 for filler."""
    kept = kept_layer(cache)
    if kept is not None and kept.source is not None:
        return kept.source
    seen = cache.get_seq_length() if cache is not None else 0
    return torch.arange(seen, device=device).expand(batch, seen)


def remember(cache: Any, source: Tensor, dropped: int, ragged: bool, filler: bool) -> None:
    """Record in every layer what it stores after one forward that dropped ``dropped`` tokens more."""
    for i in range(len(cache.layers)):
        layer = _kept(cache, i)
        layer.source = source
        layer.dropped += dropped
        layer.ragged, layer.filler = ragged, filler


def _kept(cache: Any, i: int) -> KeptLayer:
    if not isinstance(cache.layers[i], KeptLayer):
        cache.layers[i] = KeptLayer(cache.layers[i])
    return cache.layers[i]


@dataclass(frozen=True, eq=False)
class Ran:
    """What a layer ran, and so stores.

    Attributes:
        chosen: among the tokens that entered the language model, None for all of them.
        tokens: among the new tokens of the call.
        rows: how many in each row, None where the device alone knows.
    """

    chosen: Selection | None
    tokens: Selection
    rows: tuple[int, ...] | None

    @property
    def filled(self) -> bool:
        """Whether some row may hold filler."""
        return self.rows is None or min(self.rows, default=0) < self.tokens.k

    def pattern(self, layer: int) -> Hashable:
        """Equal in layers that hold their filler in the same places: chosen tokens have it on the left."""
        return "all" if self.chosen is None else layer if self.rows is None else self.rows


class LayerStore:
    """What every layer of a cache stores at the beginning of a call.

    Attributes:
        source: of each layer, (b stored).
        group: of each layer; equal where filler is in the same places.
        filler: of each layer, whether some row may hold filler.
        seen: tokens the cache has seen.
    """

    def __init__(self, cache: Any, layers: int, batch: int, device: torch.device) -> None:
        stored = list(getattr(cache, "layers", ()))[:layers]
        stored += [None] * (layers - len(stored))
        seen = cache.get_seq_length() if cache is not None else 0
        whole = torch.arange(seen, device=device).expand(batch, seen)
        sources = (getattr(layer, "source", None) for layer in stored)
        self.source: list[Tensor] = [whole if source is None else source for source in sources]
        self.group = [getattr(layer, "group", 0) for layer in stored]
        self.filler = [bool(getattr(layer, "filler", False)) for layer in stored]
        for layer, source in zip(stored, self.source, strict=True):
            if layer is not None and layer.is_initialized and layer.keys.shape[-2] != source.shape[1]:
                got = f"{layer.keys.shape[-2]} entries for {source.shape[1]} tokens"
                raise TokenOpsError("cache", "a cache whose last call came to its end", got)
        kept = kept_layer(cache)
        self.seen = self.source[0].shape[1] + (kept.dropped if kept is not None else 0)

    def valid(self, layer: int, mask: Any) -> Tensor:
        """(b stored) True for entries of a layer that are real and that the caller's mask shows."""
        return key_validity(mask, self.source[layer], self.seen)

    def remember(self, cache: Any, ran: Mapping[int, Ran], length: int) -> None:
        """Record which of the ``length`` new tokens each layer stores now; the rest it dropped."""
        made: dict[tuple[int, int], Tensor] = {}
        groups: dict[Hashable, int] = {}
        for i, each in ran.items():
            if not cache.layers[i].is_initialized:
                continue  # checkpointing leaves the cache empty
            layer, tokens = _kept(cache, i), each.tokens
            both = id(self.source[i]), id(tokens)
            if both not in made:
                new = torch.where(tokens.valid, tokens.index + self.seen, -1)
                made[both] = torch.cat([self.source[i], new], dim=1)
            layer.source = made[both]
            layer.dropped += length - tokens.k
            layer.filler |= each.filled
            layer.group = groups.setdefault((self.group[i], each.pattern(i)), i)
            layer.ragged = layer.routed = True
        kept = [layer for layer in cache.layers if isinstance(layer, KeptLayer)]
        short = {id(r.tokens): r.tokens for r in ran.values() if r.filled or r.tokens.k < length}
        floors = {id(layer.floor): layer.floor for layer in kept if layer.floor is not None}
        ends = [*floors.values(), *(_behind_missing(tokens, self.seen) for tokens in short.values())]
        floor = torch.stack(ends).amax() if ends else None
        for layer in kept:
            layer.floor = floor


def _behind_missing(tokens: Selection, seen: int) -> Tensor:
    """() one behind the last token that some row leaves out; 0 where all are in, ``seen`` tokens before."""
    place = torch.arange(seen + 1, seen + 1 + tokens.n, device=tokens.index.device)
    return ((~tokens.mask).any(0) * place).amax()


class attached_cache:
    """While inside, shortened layers accept new entries."""

    @eager
    def __init__(self, cache: Any) -> None:
        self.layers = [x for x in getattr(cache, "layers", ()) if isinstance(x, KeptLayer)]

    @eager
    def __enter__(self) -> None:
        for layer in self.layers:
            layer.attached = True

    @eager
    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.attached = False
