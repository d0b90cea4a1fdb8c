"""Uniform grid: tokens spread evenly over the picture, content unseen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenops.budget import Budget, Keep, keep_count, keep_counts
from tokenops.kernels.rows import gather_rows
from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Bool, Float, Int
from tokenops.tokenmap import Selection

_SIDE = 1 << 15  # larger than any grid


def evenly(rank: Tensor, size: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Which of ``size`` places in a line hold one of ``count`` even bins' middles, and the bin of each.

    Bin j's middle is place ``floor((2j + 1) size / (2 count))``; all distinct while count <= size.

    >>> picked, _ = evenly(torch.arange(6), torch.tensor(6), torch.tensor(2))
    >>> picked.long()
    tensor([0, 1, 0, 0, 1, 0])
    """
    size, some = size.clamp(min=1), count.clamp(min=1)
    bin_ = -((size - 2 * rank * some) // (2 * size))
    return (bin_ < count) & ((2 * bin_ + 1) * size // (2 * some) == rank), bin_


def _runs(start: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of sorted tokens, where ``start`` (b n) begins a run: its number, first token and size, per token."""
    number = start.long().cumsum(1) - 1
    size = torch.zeros_like(number).scatter_add(1, number, real.long())
    first = size.cumsum(1) - size
    return number, first.gather(1, number), size.gather(1, number)


def lattice(grid: Tensor, real: Tensor, k: Tensor) -> Tensor:
    """True at about k tokens of each row, an even lattice in every frame; exact where frames are rectangles.

    ``grid`` (b n 3) sorted by frame, row and column, padding last; ``real`` (b n); ``k`` (b 1).
    """
    total = real.sum(1, keepdim=True).clamp(min=1)
    moved = torch.ones_like(grid[..., :2], dtype=torch.bool)
    moved[:, 1:] = grid[:, 1:, :2] != grid[:, :-1, :2]
    ends = torch.zeros_like(real)
    ends[:, 1:] = real[:, 1:] != real[:, :-1]
    new_frame = moved[..., 0] | ends
    _, frame_first, frame_size = _runs(new_frame, real)
    line, line_first, line_size = _runs(new_frame | moved[..., 1], real)
    # a frame's share of k, its lines, and how many of them to use for cells about as wide as high
    share = ((frame_first + frame_size) * k + total // 2) // total - (frame_first * k + total // 2) // total
    line_of_frame = line.gather(1, frame_first.clamp(max=grid.shape[1] - 1))
    last = (frame_first + frame_size - 1).clamp(0, grid.shape[1] - 1)
    lines = (line.gather(1, last) - line_of_frame + 1).clamp(min=1)
    width = (frame_size / lines).clamp(min=1)
    used = (share * lines / width).sqrt().round().long()
    used = torch.maximum(used, (share / width).ceil().long()).clamp(min=1)
    used = torch.minimum(used, torch.minimum(lines, share.clamp(min=1)))
    in_line, number = evenly(line - line_of_frame, lines, used)
    wanted = (number + 1) * share // used - number * share // used
    place = torch.arange(grid.shape[1], device=grid.device) - line_first
    return in_line & evenly(place, line_size, wanted)[0] & (share > 0) & real


@register("selector", sample=lambda: UniformGrid(0.5))
class UniformGrid(nn.Module):
    r"""An even lattice of k tokens over the picture, lines and columns about equally far apart.

    .. math:: \text{line}_j = \Big\lfloor \frac{(2j+1) H}{2a} \Big\rfloor, \qquad
        a = \operatorname{round}\sqrt{k H / W}

    and so along every line, which share k as evenly as it divides. Frames and crops share it in proportion
    to their tokens. Exactly k tokens, whatever the shape.

    Args:
        keep: ratio in (0, 1] as a float or count as an int; may be set later.

    Shapes: x (b n d), grid (b n 3) as (frame or crop, row, column), mask (b n) -> Selection of (b n).

    Raises:
        TokenOpsError: bad keep; x not (b n d); a grid or mask of another shape or dtype.

    >>> rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    >>> grid = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(1, 16, 3)
    >>> UniformGrid(4)(torch.zeros(1, 16, 8), grid=grid).mask.view(4, 4).long()
    tensor([[0, 0, 0, 0],
            [0, 1, 0, 1],
            [0, 0, 0, 0],
            [0, 1, 0, 1]])
    """

    keep = Budget()

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

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
        n = x.shape[1]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        k = keep_counts(self.keep, real.sum(1))
        if n == 0:
            return Selection.from_mask(real)
        key = ((grid[..., 0] + 1) * _SIDE + grid[..., 1] + 1) * _SIDE + grid[..., 2] + 1
        order = key.masked_fill(~real, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
        chosen = lattice(gather_rows(grid, order), real.gather(1, order), k[:, None])
        # frames that are no rectangles may miss k by a few: the first tokens fill up
        chosen = torch.zeros_like(real).scatter(1, order, chosen)
        keep = hard_topk(chosen.float(), k, mask=real)
        return Selection.from_mask(keep, keep_count(self.keep, n) if mask is None else None)

    def __repr__(self) -> str:
        return f"UniformGrid(keep={self.keep})"
