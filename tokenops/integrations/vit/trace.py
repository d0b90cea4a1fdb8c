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
        out += _of_images(call, "after_projector", None, None, call.first.mask, call.first.scores)
    for layer in range(depth):
        if call.route is None or layer not in call.ran or call.route.schedule(layer) is None:
            continue
        chosen = call.ran[layer]
        mask = torch.ones(call.batch, call.n, dtype=torch.bool) if chosen is None else _patches(call, chosen)
        scores = None
        if chosen is not None and chosen.scores is not None and chosen is not call.before[layer]:
            scores = chosen.scores[:, call.prefix :]
            if call.first is not None:
                scores = call.first.reduce(scores)
        out += _of_images(call, "layers", layer, call.first, mask, scores)
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


def _patches(call: Call, chosen: Selection) -> Tensor:
    """(b n) which patches were chosen among all tokens."""
    return chosen.mask[:, call.prefix :]


def _of_images(
    call: Call, stage: str, layer: int | None, entered: Selection | None, mask: Tensor, scores: Tensor | None
) -> list[Trace]:
    grid, mass = call.coordinates(torch.device("cpu"))[0], call.mass
    there = torch.ones(call.batch, call.n, dtype=torch.bool) if entered is None else entered.mask.cpu()
    out = []
    for row, kept in enumerate(mask.cpu()):
        index = kept.nonzero().flatten()
        out.append(
            Trace(
                stage=stage,
                image=row,
                sample=row,
                kind="image",
                layer=layer,
                candidates=there[row].nonzero().flatten(),
                index=index,
                grid=grid[index],
                positions=index + call.prefix,
                scores=None if scores is None else scores[row].detach(),
                mass=torch.ones(len(index)) if mass is None else mass[row].detach().cpu()[kept],
            )
        )
    return out
