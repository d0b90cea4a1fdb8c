"""Attention of the last token: what the question is about to be answered from."""

from __future__ import annotations

from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Float


@register("scorer", paper="arXiv:2403.06764")
def last_attention(
    x: Float[Tensor, "b n d"], *, last_attention: Float[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    r"""Attention that the last token of a sequence paid to each token in the layer before.

    .. math:: s_j = \frac1H \sum_h A^{(l-1)}_{h, n, j}

    Shapes: x (b n d), last_attention (b n) -> (b n), float32. For :class:`~tokenops.routers.Route`, from
    layer 1 on.

    Raises:
        TokenOpsError: attention that is no float (b n).

    >>> last_attention(torch.zeros(1, 2, 4), last_attention=torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500]])

    Reference: FastV (arXiv:2403.06764) §4.1.
    """
    check_tokens("last_attention", x)
    check_beside("last_attention", "last_attention", last_attention, x, None)
    return last_attention.float()


@register("scorer", paper="arXiv:2410.17247")
def next_attention(
    x: Float[Tensor, "b n d"], *, next_attention: Float[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    r"""Attention that the last token of a sequence pays to each token with the layer's own projections.

    .. math:: s_j = \frac1H \sum_h A^{(l)}_{h, n, j}

    Shapes: x (b n d), next_attention (b n) -> (b n), float32. For :class:`~tokenops.routers.Route`.

    Raises:
        TokenOpsError: attention that is no float (b n).

    >>> next_attention(torch.zeros(1, 2, 4), next_attention=torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500]])

    Reference: PyramidDrop (arXiv:2410.17247) §3.2.
    """
    check_tokens("next_attention", x)
    check_beside("next_attention", "next_attention", next_attention, x, None)
    return next_attention.float()
