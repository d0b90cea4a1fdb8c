"""From what the probe read in a vision tower to one value per visual token, in placeholder order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.layouts import Unit

Arrange = Callable[[Any, bool, Sequence[Unit], Sequence[Tensor]], list[Tensor]]
"""``(tower, cls, units, reads) -> values (n ...) per unit``; a read is (crops, tokens, ...), one per call."""


def by_crop(tower: Any, cls: bool, units: Sequence[Unit], reads: Sequence[Tensor]) -> list[Tensor]:
    """Every crop is a row of tokens, behind the CLS token where the tower has one."""
    crops = [unit.crops for unit in units]
    rows = torch.cat(list(reads)) if reads else None
    if rows is None or rows.shape[0] != sum(crops):
        got = None if rows is None else tuple(rows.shape)
        raise TokenOpsError("probe", f"attention of {sum(crops)} crops", got)
    out = []
    for unit, own in zip(units, rows.split(crops), strict=True):
        # the CLS token may be a visual token itself
        own = own[:, 1:] if cls and not bool((unit.grid[:, 1] < 0).any()) else own
        out.append(own.flatten(0, 1)[unit.numbers.to(own.device)])
    return out


def by_window(tower: Any, cls: bool, units: Sequence[Unit], reads: Sequence[Tensor]) -> list[Tensor]:
    """Patches stand window by window; ``spatial_merge_size``² of them, here averaged, make one token."""
    merge = tower.config.spatial_merge_size
    sizes = [unit.n for unit in units]
    values = torch.cat([read.flatten(0, 1) for read in reads]) if reads else None
    if values is None or values.shape[0] != sum(sizes) * merge**2:
        got = None if values is None else tuple(values.shape)
        raise TokenOpsError("probe", f"attention of {sum(sizes) * merge**2} patches", got)
    side = tower.config.window_size // merge // tower.config.patch_size
    out = []
    for unit, own in zip(units, values.unflatten(0, (-1, merge**2)).mean(1).split(sizes), strict=True):
        order = window_order(unit.grid, side).to(own.device)
        out.append(torch.empty_like(own).index_copy(0, order, own))
    return out


def window_order(grid: Tensor, side: int) -> Tensor:
    """Tokens (n) of a raster ``grid`` (n 3) in the order of square windows, frame by frame.

    >>> raster = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3))
    >>> window_order(raster, 2)
    tensor([0, 1, 3, 4, 2, 5])
    """
    frame, row, column = grid.unbind(-1)
    row, column = row // side, column // side
    window = (frame * (row.max() + 1) + row) * (column.max() + 1) + column
    return window.argsort(stable=True)
