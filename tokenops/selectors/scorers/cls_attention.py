"""CLS attention: a token matters as much as the image summary looks at it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Float


@register("scorer", paper="arXiv:2412.01818")
def cls_attention(x: Float[Tensor, "b n d"], *, cls_attention: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    r"""Attention the CLS token of the vision tower pays to each patch, mean over heads.

    .. math:: s_j = \frac1H \sum_h A_{h,\mathrm{CLS},j}

    Shapes: x (b n d), cls_attention (b n), already averaged over heads -> (b n), float32 or wider.

    Raises:
        TokenOpsError: cls_attention is not a float tensor (b n) beside x.

    >>> cls_attention(torch.zeros(1, 2, 4), cls_attention=torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500]])

    Reference: FasterVLM (arXiv:2412.01818) §3.2.
    """
    check_tokens("cls_attention", x)
    check_beside("cls_attention", "cls_attention", cls_attention, x, None)
    return cls_attention.to(torch.promote_types(cls_attention.dtype, torch.float32))
