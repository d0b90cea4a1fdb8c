"""The cut between the k highest scores of a row and the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.kernels.order import ascending

Number = float | Tensor


def valid_tokens(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """True where a score counts: not padding, and not -inf, which is padding too."""
    return x != -math.inf if mask is None else (x != -math.inf) & mask


@dataclass(slots=True)
class Cut:
    """A row seen from the cut between kept and dropped, ``center`` (... 1).

    The cut lies midway between the last kept and the first dropped score, so x - center is exact where it
    matters, ``above`` and ``below`` (... 1) temperatures away from them: alike but for rounding. ``kept`` and
    ``dropped`` hold how many temperatures the floor(k) highest scores lie above it and the others below,
    infinity where a row has none. A fraction of k, ``part`` (... 1), goes to a score of its own, in the cut,
    of which ``rest`` (... 1) is dropped; both are 0 in rows whose k has none, and None where Python knows
    that all are.
    """

    center: Tensor
    above: Tensor
    below: Tensor
    kept: Tensor
    dropped: Tensor
    part: Tensor | None
    rest: Tensor | None


def finite(x: Tensor) -> Tensor:
    """``x`` with its largest finite number for infinity: two infinite scores are equal, not NaN apart."""
    return x.clamp(max=torch.finfo(x.dtype).max)


def cut(x: Tensor, k: Tensor, tau: Number, same: float | None = None) -> Cut:
    """Find the cut of every row; arguments as in :func:`solve`."""
    n, whole = x.shape[-1], k.floor()
    part = k - whole
    if same is None:
        ranked, first = ascending(x), n - whole.long()
        last, out = (finite(ranked.gather(-1, (first - i).clamp(0, n - 1))) for i in (0, 1))
        last, between = torch.where(part > 0, out, last), 0
    else:
        # the floor(k) highest are the same slice of every row, in any order
        first, between = n - min(max(math.floor(same), 0), n), math.ceil(same) - math.floor(same)
        ranked = ascending(x, max(first - 1, 0))
        last = out = finite(ranked.narrow(-1, max(first - 1, 0), 1))
        if not between:
            last = finite(ranked[..., min(first, n - 1) :].amin(-1, True))
    center = last / 2 + out / 2
    above, below = finite((last - center) / tau), finite((center - out) / tau)
    kept = (finite(ranked) - center) / tau
    dropped = -kept
    if same is not None:
        kept, dropped = kept[..., first:], dropped[..., : max(first - between, 0)]
        if not between:
            return Cut(center, above, below, kept, dropped, None, None)
    else:
        rank = torch.arange(n - 1, -1, -1, device=x.device)
        kept = torch.where(rank < whole, kept, math.inf)
        dropped = torch.where(rank >= k.ceil(), dropped, math.inf)
    rest = torch.where(part > 0, 1 - part, 0.0)
    return Cut(center, above, below, kept, dropped, part.to(x.dtype), rest.to(x.dtype))
