"""Diversity: tokens as far from each other as can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenops.budget import Budget, Keep, keep_count
from tokenops.registry import register
from tokenops.selectors.checks import check_tokens
from tokenops.selectors.cosine import ONE, cosines, directions, most_alike
from tokenops.shapes import Bool, Float
from tokenops.tokenmap import Selection


def spread(unit: Float[Tensor, "n e"], k: int) -> Bool[Tensor, "n"]:
    """True at ``k`` of n directions, greedily far apart; those that are no direction (zeros) come last."""
    broken = ~unit.any(-1)
    alone = most_alike(unit, unit, others=True)[0]
    # how close the nearest chosen one is; a chosen one is closer than anything
    near = torch.where(broken, 2.0 * ONE, -torch.inf)
    newest = torch.where(broken, near, alone).argmin(0, keepdim=True)
    for _ in range(k - 1):
        near = torch.maximum(near, cosines(unit, unit[newest])[:, 0])
        near[newest] = torch.inf
        newest = near.argmin(0, keepdim=True)
    near[newest] = torch.inf
    return near.isposinf()


@register("selector", paper="arXiv:2503.02175", sample=lambda: Diverse(0.5))
class Diverse(nn.Module):
    r"""k tokens whose smallest distance to each other is large, chosen greedily.

    .. math:: i_1 = \arg\max_i \min_{j \ne i} d_{ij}, \qquad i_{t+1} = \arg\max_i \min_{j \in S_t} d_{ij},
        \qquad d_{ij} = 1 - \cos(x_i, x_j)

    Exactly k different tokens of every row, also of equal ones; the lowest index wins ties. Zero vectors are
    equal to each other and at distance 1 from all others; vectors with NaN or infinity are taken last. A row
    is computed alone, in float32 or wider: O(n k d) time and O(n d) memory after the first token, which
    compares all pairs, a bounded number at a time.

    Args:
        keep: ratio in (0, 1] as a float or count as an int; may be set later.

    Shapes: x (b n d), mask (b n) False for padding -> Selection of (b n).

    Raises:
        TokenOpsError: bad keep; x not (b n d); a mask of another shape or dtype.

    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    >>> Diverse(2)(x).index
    tensor([[0, 2]])

    Reference: DivPrune (arXiv:2503.02175) §3.2, with this library's rounding of k. Its released code repeats
    tokens and returns NaN on repeated or zero vectors.
    """

    keep = Budget()

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Float[Tensor, "b n d"], *, mask: Bool[Tensor, "b n"] | None = None) -> Selection:
        """The tokens to keep."""
        check_tokens("Diverse", x, mask)
        b, n = x.shape[:2]
        real = torch.ones(b, n, dtype=torch.bool, device=x.device) if mask is None else mask
        keep = torch.zeros_like(real)
        for i, size in enumerate(real.sum(1).tolist()):
            if size:
                few = x[i] if size == n else x[i, real[i]]
                keep[i, real[i]] = spread(directions(few.detach()), keep_count(self.keep, size))
        return Selection.from_mask(keep, keep_count(self.keep, n) if mask is None else None)

    def __repr__(self) -> str:
        return f"Diverse(keep={self.keep})"
