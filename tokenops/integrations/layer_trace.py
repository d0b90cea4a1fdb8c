"""What ran in each routed layer of the last call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenops.integrations.routing import Routing
from tokenops.integrations.trace import Trace
from tokenops.integrations.visual import Decision, Placed
from tokenops.tokenmap import Selection


def layer_traces(
    routing: Routing, placed: Sequence[Placed], before: Sequence[Trace], layers: int
) -> tuple[Trace, ...]:
    """One :class:`Trace` per routed layer and unit; ``before`` are those of the stage before the layers."""
    assert routing.route is not None
    mass = [(t.positions, t.mass) for t in before] or [None] * len(placed)
    entered = [_patches(routing.tokens.mask, p) for p in placed]
    there = list(entered)
    out = []
    for layer in range(layers):
        ran = routing.ran.get(layer, routing.all)
        chosen = ran.chosen
        if chosen is None and routing.route.schedule(layer) is None:
            continue
        mask = ran.tokens.mask
        for number, p in enumerate(placed):
            stays, candidates = _patches(mask, p), there[number]
            scores = _scores(routing, chosen, number)
            patch, positions = p.unit.numbers.cpu(), p.patches.cpu()[stays]
            out.append(
                Trace(
                    stage="layers",
                    image=number,
                    sample=p.row,
                    kind=p.unit.kind,
                    layer=layer,
                    candidates=patch[candidates],
                    index=patch[stays],
                    grid=p.unit.grid.cpu()[stays],
                    positions=positions,
                    scores=None if scores is None else scores[candidates[entered[number]]],
                    mass=_mass(mass[number], positions),
                )
            )
            if routing.route.fate == "exit":
                there[number] = stays
    return tuple(out)


def mean_tokens(
    routing: Routing | None, placed: Sequence[Placed], decision: Decision | None, layers: int
) -> tuple[float, ...]:
    """Visual tokens that ran in each layer, mean over the images and videos of the call."""
    if not placed:
        return ()
    entered = None if routing is None else routing.tokens
    if decision is not None and decision.over_sequence.gate is None:
        entered = decision.over_sequence
    means = []
    for layer in range(layers):
        ran = routing.ran[layer].tokens if routing is not None and layer in routing.ran else entered
        mask = None if ran is None else ran.mask
        counts = [p.unit.n if mask is None else int(_patches(mask, p).sum()) for p in placed]
        means.append(sum(counts) / len(counts))
    return tuple(means)


def _patches(mask: Tensor, p: Placed) -> Tensor:
    """(n) which patches of a unit are True in (b l)."""
    return mask[p.row, p.patches.to(mask.device)].cpu()


def _scores(routing: Routing, chosen: Selection | None, number: int) -> Tensor | None:
    """(n) those of the unit's tokens that entered the language model, None where nobody was asked."""
    units = routing.units
    if chosen is None or chosen.scores is None or units is None or number >= len(units.sizes):
        return None
    return chosen.scores.detach().flatten()[units.places[number][units.real[number]]]


def _mass(kept: tuple[Tensor, Tensor] | None, positions: Tensor) -> Tensor:
    return torch.ones(len(positions)) if kept is None else kept[1][torch.isin(kept[0], positions)]
