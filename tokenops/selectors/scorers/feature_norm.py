"""Feature norm: a token matters as much as its vector is long. Needs no training and no attention."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.checks import check_tokens
from tokenops.shapes import Float


@register("scorer")
def feature_norm(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
    r"""Euclidean length of every token's features.

    .. math:: s_i = \lVert x_i \rVert_2

    Shapes: x (b n d) -> (b n), float32 or wider.

    Raises:
        TokenOpsError: x is not a float tensor (b n d).

    >>> feature_norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
    tensor([[5., 1.]])
    """
    check_tokens("feature_norm", x)
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
