"""What components want to know of the vision tower: attention and keys of one of its modules, without maps.

They are read from the queries and keys that a :class:`~tokenops.integrations.lens.Lens` shows, a bounded
number of rows at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Family, Parts, Tower
from tokenops.integrations.layouts import Unit
from tokenops.integrations.lens import put_lens
from tokenops.integrations.wrap import LivesOnModel, eager

_AT_ONCE = 1 << 24  # entries of attention maps held at a time, 64 MiB


def _cls_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(b n) the first row of the map, heads averaged."""
    logits = (query[:, :, :1].float() * scale) @ key.float().transpose(-1, -2)
    return logits.softmax(-1)[:, :, 0].mean(1)


def _received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(b n) the mean of every column of the map, heads averaged."""
    b, h, n = query.shape[:3]
    some = max(1, _AT_ONCE // (b * h * n))
    columns, total = key.float().transpose(-1, -2), query.new_zeros(b, n, dtype=torch.float32)
    for start in range(0, n, some):
        rows = (query[:, :, start : start + some].float() * scale) @ columns
        total += rows.softmax(-1).sum((1, 2))
    return total / (h * n)


def _vision_keys(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(b n e) keys as the attention sees them, heads averaged."""
    return key.float().mean(1)


READS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cls_attention": _cls_attention,
    "received_attention": _received_attention,
    "vision_keys": _vision_keys,
}


class Sink(LivesOnModel):
    """Holds what was read since it was last emptied, per thread: name -> one tensor for each call."""

    def __init__(self, layer: Any, wanted: Iterable[str]) -> None:
        self.layer, self.wanted = layer, tuple(sorted(wanted))
        self.local = threading.local()

    def read(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Look at one call of the module."""
        with torch.autocast(query.device.type, enabled=False):
            self.put({name: READS[name](query.detach(), key.detach(), scale) for name in self.wanted})

    @eager
    def put(self, read: dict[str, Tensor]) -> None:
        """Add what one call of the module showed."""
        for name, value in read.items():
            vars(self.local).setdefault(name, []).append(value)

    @eager
    def take(self) -> dict[str, list[Tensor]]:
        """Everything read, and empty it."""
        read = dict(vars(self.local))
        vars(self.local).clear()
        return read

    def check(self, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise TokenOpsError if a call takes its features from another layer than the one probed."""
        given = arguments.get("vision_feature_layer")
        layer = getattr(config, "vision_feature_layer", None) if given is None else given
        if layer != self.layer:
            raise TokenOpsError("attach", f"vision_feature_layer {self.layer}, as when attached", layer)


def find_tower(parts: Parts, signal: str) -> Tower:
    """How to read ``signal`` in the vision tower.

    Raises:
        TokenOpsError: the tower cannot give it.
    """
    kind = getattr(parts.vision_tower.config, "model_type", type(parts.vision_tower).__name__)
    tower = parts.family.towers.get(kind)
    if tower is None or (signal != "vision_keys" and tower.cls != (signal == "cls_attention")):
        what = {
            "cls_attention": "a vision tower with a CLS token",
            "received_attention": "a vision tower without a CLS token (cls_attention is for those with one)",
            "vision_keys": "a vision tower whose attention can be read",
        }[signal]
        raise TokenOpsError("attach", f"signal {signal}: {what}", f"{parts.family.name} with {kind}")
    return tower


def find_attention(parts: Parts, tower: Tower) -> Any:
    """The attention of the block to read: the last that sees whole images, up to the one the projector reads.

    Raises:
        TokenOpsError: ``vision_feature_layer`` is no block.
    """
    blocks = attrgetter(tower.blocks)(parts.vision_tower)
    if tower.full is not None:
        return getattr(blocks[max(getattr(parts.vision_tower.config, tower.full))], tower.attention)
    layer = getattr(parts.base.config, "vision_feature_layer", -1)
    layer = layer[-1] if isinstance(layer, (list, tuple)) else layer
    # hidden_states[0] is the embedding, so hidden_states[i] comes out of block i - 1
    number = layer - 1 if layer >= 0 else len(blocks) + layer
    if not 0 <= number < len(blocks):
        raise TokenOpsError("attach", f"vision_feature_layer of a block among {len(blocks)}", layer)
    return getattr(blocks[number], tower.attention)


def probe(parts: Parts, signals: Iterable[str]) -> Sink:
    """Read ``signals`` in the vision tower of a model from now on.

    Raises:
        TokenOpsError: the tower cannot give one of them.
    """
    (tower, *_) = [find_tower(parts, signal) for signal in sorted(signals)]
    module = find_attention(parts, tower)
    sink = Sink(getattr(parts.base.config, "vision_feature_layer", None), signals)
    put_lens(module, sink.read)
    return sink


def note_signals(sink: Sink, base: Any, family: Family, units: Sequence[Unit]) -> None:
    """Take what was read for these units and write it on them, in the order of their tokens."""
    vision = attrgetter(family.vision_tower)(base)
    tower = family.towers[vision.config.model_type]
    read = sink.take()
    for name in sink.wanted:
        values = tower.arrange(vision, tower.cls, units, read.get(name, []))
        for unit, value in zip(units, values, strict=True):
            unit.signals[name] = value
