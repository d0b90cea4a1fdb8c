"""Uniform grid: tokens spread evenly over the picture, content unseen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenops.budget import Keep, check_keep, keep_count, keep_counts
from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Bool, Float, Int
from tokenops.tokenmap import Selection

_BITS = 15


def hilbert(row: Tensor, column: Tensor) -> Tensor:
    """Place of each cell along a Hilbert curve over a 2^15-wide square, which stays near where it has been.

    >>> hilbert(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])).sort().values
    tensor([0, 1, 2, 3])
    """
    place = torch.zeros_like(row)
    for bit in reversed(range(_BITS)):
        low, high = (row >> bit) & 1, (column >> bit) & 1
        place = (place << 2) | ((3 * high) ^ low)
        # enter the quadrant as the curve does: mirrored in one of the two it starts from, then transposed
        mirror, side = (low == 0) & (high == 1), (1 << bit) - 1
        row, column = row & side, column & side
        row, column = torch.where(mirror, side - row, row), torch.where(mirror, side - column, column)
        row, column = torch.where(low == 0, column, row), torch.where(low == 0, row, column)
    return place


@register("selector", sample=lambda: UniformGrid(0.5))
class UniformGrid(nn.Module):
    r"""Every (N/k)-th token along a Hilbert curve through the frames or crops, one after the other.

    .. math:: \mathrm{keep}_i = \lfloor ((r_i + 1) k + h) / N \rfloor - \lfloor (r_i k + h) / N \rfloor,
        \qquad h = \lfloor N / 2 \rfloor

    with :math:`r_i` the token's rank along the curve. Exactly k tokens; each frame, each quadrant and each
    quadrant of those gets its share of k up to one token.

    Args:
        keep: ratio in (0, 1] as a float or count as an int; may be set later.

    Shapes: x (b n d), grid (b n 3) as (frame or crop, row, column), mask (b n) -> Selection of (b n).

    Raises:
        TokenOpsError: bad keep; x not (b n d); a grid or mask of another shape or dtype.

    >>> rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    >>> grid = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(1, 16, 3)
    >>> UniformGrid(4)(torch.zeros(1, 16, 8), grid=grid).mask.view(4, 4).long()
    tensor([[0, 0, 0, 0],
            [0, 1, 1, 0],
            [0, 1, 1, 0],
            [0, 0, 0, 0]])
    """

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

    @property
    def keep(self) -> Keep:
        """The budget: a ratio in (0, 1] or a count."""
        return self._keep

    @keep.setter
    def keep(self, keep: Keep) -> None:
        self._keep = check_keep(keep, who="UniformGrid")

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        grid: Int[Tensor, "b n 3"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Selection:
        """The tokens to keep."""
        check_tokens("UniformGrid", x, mask)
        check_beside("UniformGrid", "grid", grid, x, torch.long, 3)
        frame, row, column = grid.unbind(-1)
        key = (frame << 2 * _BITS) + hilbert(row, column)
        n = x.shape[1]
        if mask is None:
            total, slots = torch.full((x.shape[0], 1), n, device=x.device), keep_count(self.keep, n)
        else:
            key = key.masked_fill(~mask, torch.iinfo(torch.long).max)
            total, slots = mask.sum(1, keepdim=True), None
        k = keep_counts(self.keep, total)
        rank = key.argsort(dim=1, stable=True).argsort(dim=1)
        m = total.clamp(min=1)
        keep = ((rank + 1) * k + m // 2) // m > (rank * k + m // 2) // m
        return Selection.from_mask(keep & (rank < total), slots)

    def __repr__(self) -> str:
        return f"UniformGrid(keep={self.keep})"
