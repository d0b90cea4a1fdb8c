"""A cache whose layers report tokens *seen* and store tokens *kept*.

``generate`` slices prompts, and models number positions, by the cache's length; both count original tokens.
Masks on the other hand need to know what is stored. A :class:`KeptLayer` answers each question with its own
number, so decoding, default positions and a second turn come out right on a shortened cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tokenops.errors import TokenOpsError
from tokenops.integrations.masks import key_validity
from tokenops.tokenmap import Selection


class KeptLayer(DynamicLayer):
    """A :class:`DynamicLayer` that knows which original token each of its entries is.

    Attributes:
        source: (b stored) long, original index of every entry; -1 for filler of ragged rows.
        dropped: tokens seen and not stored, the same in every row.
        ragged: the caller's mask, right-aligned, does not tell which entries are real.
        routed: the layers of this cache store different tokens.
        floor: all layers store every token from this one on, so that all can be cropped to it.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.source: Tensor | None = None
        self.dropped = 0
        self.ragged = self.routed = False
        self.attached = False
        self.floor = 0

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
        if seen + tokens_to_remove < self.floor or not stored:
            raise TokenOpsError(
                "cache.crop", "to remove tokens that are all stored", f"{-tokens_to_remove} of {seen}"
            )
        super().crop(tokens_to_remove)
        self.source = self.source[:, :tokens_to_remove]

    def reset(self) -> None:
        """Empty."""
        super().reset()
        self.source, self.dropped, self.floor = None, 0, 0
        self.ragged = self.routed = False

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


def stored_source(cache: Any, batch: int, device: torch.device, layer: int = 0) -> Tensor:
    """(b stored) original index of every token a layer stores; -1 for filler."""
    layers = getattr(cache, "layers", ())
    kept = layers[layer] if layer < len(layers) else None
    if isinstance(kept, KeptLayer) and kept.source is not None:
        return kept.source
    seen = cache.get_seq_length() if cache is not None else 0
    return torch.arange(seen, device=device).expand(batch, seen)


def remember(cache: Any, source: Tensor, dropped: int, ragged: bool) -> None:
    """Record in every layer what it stores after one forward that dropped ``dropped`` tokens more."""
    for i in range(len(cache.layers)):
        layer = _kept(cache, i)
        layer.source = source
        layer.dropped += dropped
        layer.ragged = ragged


def _kept(cache: Any, i: int) -> KeptLayer:
    if not isinstance(cache.layers[i], KeptLayer):
        cache.layers[i] = KeptLayer(cache.layers[i])
    return cache.layers[i]


class LayerStore:
    """What every layer of a cache stores at the beginning of a call.

    Attributes:
        source: of each layer, (b stored).
        seen: tokens the cache has seen.
    """

    def __init__(self, cache: Any, layers: int, batch: int, device: torch.device) -> None:
        self.source = [stored_source(cache, batch, device, i) for i in range(layers)]
        for layer, source in zip(getattr(cache, "layers", ()), self.source, strict=False):
            if layer.is_initialized and layer.keys.shape[-2] != source.shape[1]:
                got = f"{layer.keys.shape[-2]} entries for {source.shape[1]} tokens"
                raise TokenOpsError("cache", "a cache whose last call came to its end", got)
        kept = kept_layer(cache)
        self.seen = self.source[0].shape[1] + (kept.dropped if kept is not None else 0)

    def valid(self, layer: int, mask: Any) -> Tensor:
        """(b stored) True for entries of a layer that are real and that the caller's mask shows."""
        return key_validity(mask, self.source[layer], self.seen)

    def remember(self, cache: Any, ran: Mapping[int, Selection], length: int) -> None:
        """Record which of the ``length`` new tokens each layer stores now; the rest it dropped."""
        kinds = {id(tokens): tokens for tokens in ran.values()}.values()
        missing = max((self.seen + _last_missing(tokens) for tokens in kinds), default=0)
        for i, tokens in ran.items():
            if not cache.layers[i].is_initialized:
                continue  # checkpointing leaves the cache empty
            layer = _kept(cache, i)
            new = torch.where(tokens.valid, tokens.index + self.seen, -1)
            layer.source = torch.cat([self.source[i], new], dim=1)
            layer.dropped += length - tokens.k
            layer.ragged = layer.routed = True
            layer.floor = max(layer.floor, missing)


def _last_missing(tokens: Selection) -> int:
    """One behind the last token that some row leaves out; 0 where all are in."""
    return int(((~tokens.mask).any(0) * torch.arange(1, tokens.n + 1, device=tokens.index.device)).max())


class attached_cache:
    """While inside, shortened layers accept new entries."""

    def __init__(self, cache: Any) -> None:
        self.layers = [x for x in getattr(cache, "layers", ()) if isinstance(x, KeptLayer)]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.attached = True

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.attached = False
