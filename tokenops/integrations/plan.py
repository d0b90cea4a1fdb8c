"""What the layers of a call will run, as far as counts tell: read from the device before any layer runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenops.integrations.cache import LayerStore
from tokenops.routers.route import Route
from tokenops.routers.units import Units
from tokenops.tokenmap import Selection

Counts = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Share:
    """What a layer will run, as far as it is known before any layer ran.

    Attributes:
        asks: whether the scorer of this layer is asked.
        rows: how many tokens of each row run; None where that depends on which line breaks stay.
        most: no row runs more.
    """

    asks: bool
    rows: tuple[int, ...] | None
    most: int


def numbers_of(
    units: Units | None, tokens: Selection, given: Any, store: LayerStore
) -> tuple[Counts, tuple[bool, bool], Counts, Counts, Counts]:
    """The numbers a call depends on, read from the device at once.

    Real tokens of each row; whether the mask hides any token, and any real one that a layer stores; real
    tokens of each unit; text and line breaks of each row.
    """
    valid, shows = tokens.valid, isinstance(given, Tensor) and given.ndim == 2
    hides = (given == 0).any() if shows else valid.new_zeros(())
    hidden = hides
    if shows and any(store.filler):
        sources = {id(source): i for i, source in enumerate(store.source)}.values()
        hidden = torch.cat([store.valid(i, given) != (store.source[i] >= 0) for i in sources], 1).any()
    parts = [valid.sum(1), hides[None], hidden[None]]
    if units is not None:
        others = valid & ~units.visual
        text = others if units.line is None else others & (units.line < 0)
        real = units.real & valid.flatten()[units.places]
        parts += [real.sum(1), text.sum(1), (others & ~text).sum(1)]
    numbers = iter(torch.cat([part.to(valid.device, torch.long) for part in parts]).tolist())
    rows, (hides,), (hidden,), *rest = (tuple(itertools.islice(numbers, len(part))) for part in parts)
    there, text, breaks = rest or ((), (), ())
    return rows, (bool(hides), bool(hidden)), there, text, breaks


def plan_of(
    route: Route,
    units: Units,
    there: Counts,
    text: Counts,
    breaks: Counts,
    layers: int,
) -> list[Share | None]:
    """Of each layer, None where all tokens run; ``there`` real tokens of each unit, others of each row."""
    plan: list[Share | None] = []
    left, now = units.sizes, None
    for layer in range(layers):
        counts = route.counts(layer, units.sizes)
        share = now
        if any(count < rest for count, rest in zip(counts, left, strict=True)):
            kept = tuple(map(min, counts, there))
            rows = list(text)
            for row, number in zip(units.rows, kept, strict=True):
                rows[row] += number
            # a line that stays has a token that stays
            ends = [min(row - words, end) for row, words, end in zip(rows, text, breaks, strict=True)]
            most = max(map(sum, zip(rows, ends, strict=True)))
            share = Share(True, None if any(ends) else tuple(rows), most)
            if route.fate == "exit":
                there, left, now = kept, tuple(map(min, counts, left)), replace(share, asks=False)
        plan.append(share)
    return plan
