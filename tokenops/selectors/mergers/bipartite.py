"""Bipartite matching: the most similar pairs of neighbouring tokens become one, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.cosine import directions, most_alike
from tokenops.selectors.mergers.rows import merge_rows
from tokenops.shapes import Bool, Float
from tokenops.tokenmap import Assignment, Selection


def _join(x: Tensor, kept: Tensor) -> Tensor:
    home = torch.arange(x.shape[0], device=x.device)
    k, alive = int(kept.sum()), home
    if not k:
        return torch.full_like(home, -1)
    # a mean weighted by size has the direction of the sum
    total = x.to(torch.promote_types(x.dtype, torch.float32))
    while (over := alive.shape[0] - k) > 0:
        unit = directions(total[alive])
        close, best = most_alike(unit[::2], unit[1::2])
        merged = hard_topk(close, min(over, alive.shape[0] // 2))
        sources, targets = alive[::2][merged], alive[1::2][best[merged]]
        total = total.index_add(0, targets, total[sources])
        home = home.scatter(0, sources, targets)[home]
        alive = alive[home[alive] == alive]
    return home


@register("merger", paper="arXiv:2210.09461")
def bipartite(
    x: Float[Tensor, "b n d"], selection: Selection, *, mask: Bool[Tensor, "b n"] | None = None
) -> Assignment:
    r"""Merge each row down to as many tokens as the selection keeps, by bipartite soft matching.

    .. math:: A = \{0, 2, 4, \dots\},\ B = \{1, 3, \dots\}, \qquad
        e(a) = \arg\max_{b \in B} \cos(x_a, x_b), \qquad \text{the } r \text{ best edges are merged}

    A round merges r = n - k of n tokens, n // 2 at most; further rounds work on the means of the groups,
    weighted by size, until k are left. **The selection gives the number only**: which tokens it keeps does
    not matter, so that a budget is written in one place, the selector's. A group stands at the place of the
    token of B that its last merge joined. The lowest index wins ties; zero vectors are alike.

    Shapes: x (b n d), selection of (b n), mask (b n) False for padding -> Assignment of (b n). Rows that
    select nothing leave.

    Raises:
        TokenOpsError: x not (b n d); a selection or mask of another shape.

    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [9.0, 1.0]]])
    >>> bipartite(x, Selection.from_mask(torch.tensor([[True, True, False, False]]))).group
    tensor([[1, 0, 0, 1]])

    Reference: ToMe (arXiv:2210.09461) §3. Deviations: features stand for attention keys, the merge happens
    once, before the language model, and tokens stay in the order of the sequence between rounds.
    """
    return merge_rows("bipartite", x, selection, mask, _join)


bipartite.positional = True  # pyright: ignore[reportFunctionMemberAccess]
