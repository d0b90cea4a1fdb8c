"""What mergers share: a row is merged alone, without its padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.selectors.checks import check_tokens
from tokenops.shapes import Bool, Float
from tokenops.tokenmap import Assignment, Selection

Join = Callable[[Tensor, Tensor], Tensor]


def merge_rows(
    who: str,
    x: Float[Tensor, "b n d"],
    selection: Selection,
    mask: Bool[Tensor, "b n"] | None,
    join: Join,
    by: Float[Tensor, "b n e"] | None = None,
) -> Assignment:
    """Ask ``join(features (n d), kept (n)) -> home (n)`` about the real tokens of every row.

    ``home`` is the token that each token joins, itself for the anchor of a group, -1 for a token that leaves.
    ``by`` are the features to compare, ``x`` by default. Rows cannot see each other, and nothing has a
    gradient.

    Raises:
        TokenOpsError: x not (b n d), a selection of other tokens, a mask of another shape or dtype.
    """
    check_tokens(who, x, mask)
    if not isinstance(selection, Selection):
        raise TokenOpsError(who, "a Selection", type(selection).__name__)
    size, device = (selection.index.shape[0], selection.n), selection.index.device
    if size != tuple(x.shape[:2]) or device != x.device:
        got = f"{size} on {device}"
        raise TokenOpsError(who, f"a Selection of {tuple(x.shape[:2])} on {x.device}", got)
    by = x if by is None else by
    real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    home, kept = torch.full_like(real, -1, dtype=torch.long), selection.mask
    for i, row in enumerate(real):
        at = row.nonzero().flatten()
        if at.shape[0]:
            joined = join(by[i, at].detach(), kept[i, at])
            home[i, at] = torch.where(joined >= 0, at[joined.clamp(min=0)], -1)
    return Assignment.joining(home)
