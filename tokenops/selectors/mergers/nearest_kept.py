"""Nearest kept: a dropped token goes to the kept token that is most like it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.cosine import directions, most_alike
from tokenops.selectors.mergers.rows import merge_rows
from tokenops.shapes import Bool, Float
from tokenops.tokenmap import Assignment, Selection


def _join(x: Tensor, kept: Tensor) -> Tensor:
    anchors, rest = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    home = torch.arange(x.shape[0], device=x.device)
    if not anchors.shape[0]:
        return torch.full_like(home, -1)
    unit = directions(x)
    return home.index_copy(0, rest, anchors[most_alike(unit[rest], unit[anchors])[1]])


@register("merger")
def nearest_kept(
    x: Float[Tensor, "b n d"], selection: Selection, *, mask: Bool[Tensor, "b n"] | None = None
) -> Assignment:
    r"""Every token that is not selected joins the selected token with the highest cosine similarity.

    .. math:: g(i) = \arg\max_{j \in S} \cos(x_i, x_j)

    As many groups as selected tokens, which are their anchors. The lowest index wins ties; zero vectors are
    alike. A row that selects nothing has nothing to join: its tokens leave.

    Shapes: x (b n d), selection of (b n), mask (b n) False for padding -> Assignment of (b n).

    Raises:
        TokenOpsError: x not (b n d); a selection or mask of another shape.

    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]])
    >>> nearest_kept(x, Selection.from_mask(torch.tensor([[True, True, False]]))).group
    tensor([[0, 1, 1]])
    """
    return merge_rows("nearest_kept", x, selection, mask, _join)
