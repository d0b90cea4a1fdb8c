"""Segments: several images in one flat sequence, each with a budget of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError


def check_segments(who: str, scores: Tensor, segments: Tensor) -> None:
    """Raise TokenOpsError for segments that are not long and shaped like the scores."""
    if isinstance(segments, Tensor) and segments.shape == scores.shape and segments.dtype == torch.long:
        return
    got = type(segments).__name__
    if isinstance(segments, Tensor):
        got = f"{segments.dtype} {tuple(segments.shape)}"
    raise TokenOpsError(who, f"segments long {tuple(scores.shape)}", got)


def in_rows(
    who: str, x: Tensor, mask: Tensor | None, segments: Tensor, budget: float | Tensor | None
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Give every segment a row of its own.

    Args:
        who: for the error.
        x: (... n) scores.
        mask: (... n) or None.
        segments: (... n) long, the segment of each token, -1 for none.
        budget: a number, or a tensor (... s) or (s) whose last axis says how many segments there are.

    Returns:
        Scores (... s longest), their mask, and the way back to (... n) for a tensor of that shape, with 0 at
        tokens without a segment.

    Raises:
        TokenOpsError: more segments than budgets.
    """
    inside = segments >= 0 if mask is None else mask & (segments >= 0)
    used = int(segments.masked_fill(~inside, -1).amax()) + 1 if segments.numel() else 0
    number = budget.shape[-1] if isinstance(budget, Tensor) and budget.ndim else used
    if used > number:
        raise TokenOpsError(who, f"segments below {number}, one budget each", used - 1)
    rows = x.shape[:-1].numel()
    row = torch.arange(rows, device=x.device).view(*x.shape[:-1], 1)
    # tokens outside share one key behind all others
    key = torch.where(inside, row * number + segments, rows * number).flatten()
    counts = key.bincount(minlength=rows * number + 1)
    longest = int(counts[:-1].amax()) if rows * number else 0
    order = key.argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    slot = rank - (counts.cumsum(0) - counts)[key]
    place = torch.where(key < rows * number, key * longest + slot, rows * number * longest)
    shape = (*x.shape[:-1], number, longest)
    empty = x.new_zeros(rows * number * longest + 1)
    there = torch.zeros_like(empty, dtype=torch.bool).index_fill(0, place, True)
    spread = empty.index_put((place,), x.flatten())

    def back(p: Tensor) -> Tensor:
        flat = torch.cat([p.flatten(), p.new_zeros(1)])
        return flat.index_select(0, place).view(x.shape)

    return spread[:-1].view(shape), there[:-1].view(shape), back
