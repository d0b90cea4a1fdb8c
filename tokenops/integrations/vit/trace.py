"""What ran in each block of the last forward."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.integrations.trace import Trace
from tokenops.integrations.vit.call import Call
from tokenops.tokenmap import Selection


def traces(call: Call | None, depth: int) -> tuple[Trace, ...]:
    """One :class:`Trace` for each image: of the stage before the blocks, then of every routed block."""
    if call is None:
        return ()
    out = []
    if call.first is not None:
        there = _patches(call, None)
        out += _of_images(call, "after_projector", None, there, call.first.mask, call.first.scores)
    for layer in range(depth):
        if call.route is None or layer not in call.ran or call.route.schedule(layer) is None:
            continue
        chosen, before = call.ran[layer], call.before[layer]
        scores = None
        if chosen is not None and chosen.scores is not None and chosen is not before:
            scores = chosen.scores[:, call.prefix :]
        there, kept = (_patches(call, v) for v in (before, chosen))
        out += _of_images(call, "layers", layer, there, kept, scores)
    return tuple(out)


def tokens_per_block(call: Call | None, depth: int) -> tuple[float, ...]:
    """Patches that ran in each block; 0 in blocks that did not run."""
    if call is None:
        return ()
    counts = []
    for layer in range(depth):
        chosen = call.ran.get(layer)
        whole = call.n if layer in call.ran else 0
        counts.append(float(whole if chosen is None else chosen.k - call.prefix))
    return tuple(counts)


def _patches(call: Call, chosen: Selection | None) -> Tensor:
    """(b n) which patches were chosen among all tokens, None for all."""
    every = torch.ones(call.batch, call.n, dtype=torch.bool)
    return every if chosen is None else chosen.mask[:, call.prefix :]


def _of_images(
    call: Call, stage: str, layer: int | None, there: Tensor, mask: Tensor, scores: Tensor | None
) -> list[Trace]:
    """``there`` and ``mask`` (b n) are patches before and after the choice, by ``scores`` (b n) of all."""
    grid, mass = call.coordinates(torch.device("cpu"))[0], call.mass
    out = []
    for row, (before, kept) in enumerate(zip(there.cpu(), mask.cpu(), strict=True)):
        index = kept.nonzero().flatten()
        out.append(
            Trace(
                stage=stage,
                image=row,
                sample=row,
                kind="image",
                layer=layer,
                candidates=before.nonzero().flatten(),
                index=index,
                grid=grid[index],
                positions=index + call.prefix,
                scores=None if scores is None else scores[row].detach()[before],
                mass=torch.ones(len(index)) if mass is None else mass[row].detach().cpu()[kept],
            )
        )
    return out
