"""Received attention: a token matters as much as the others look at it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Float


@register("scorer", paper="arXiv:2412.04467")
def received_attention(
    x: Float[Tensor, "b n d"], *, received_attention: Float[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    r"""Attention a token receives from all tokens of its image in the vision tower, mean over heads.

    .. math:: s_j = \frac{1}{HN} \sum_{h,i} A_{h,i,j}

    For towers without a CLS token; with one, use ``cls_attention``.

    Shapes: x (b n d), received_attention (b n), already averaged -> (b n), float32 or wider.

    Raises:
        TokenOpsError: received_attention is not a float tensor (b n) beside x.

    >>> received_attention(torch.zeros(1, 2, 4), received_attention=torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500]])

    Reference: VisionZip (arXiv:2412.04467) §3.2.
    """
    check_tokens("received_attention", x)
    check_beside("received_attention", "received_attention", received_attention, x, None)
    return received_attention.to(torch.promote_types(received_attention.dtype, torch.float32))
