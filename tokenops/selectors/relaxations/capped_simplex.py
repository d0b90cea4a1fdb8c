"""Capped simplex: the Euclidean projection of the scores, with exact zeros and ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.shapes import Bool, Float, Int

CAPPED_SIMPLEX = Curve(
    name="capped_simplex",
    value=lambda u: (u + 0.5).clamp(0, 1),
    density=lambda p: torch.addcmul(p, p, p, value=-1).ceil(),  # 1 inside (0, 1)
    quantile=lambda p: p - 0.5,
    variance=1 / 12,
    steepness=1.0,
    smooth=False,
)


@register("relaxation", paper="arXiv:1602.02068")
def capped_simplex_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    segments: Int[Tensor, "..."] | None = None,
    dim: int = -1,
    hard: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Soft Top-K as the nearest point of the capped simplex; exact zeros and ones.

    .. math:: p = \arg\min_{q \in [0, 1]^n,\ \sum q = k} \tfrac12 \lVert q - x/\tau \rVert^2, \qquad
        p_i = \min(1, \max(0, (x_i - \nu)/\tau + \tfrac12))

    Tokens more than :math:`\tau/2` away from the threshold are decided and get no gradient. Where every token
    is (an integer k, a gap above :math:`\tau` at the cut) the mask is the hard Top-K and all its derivatives,
    that in k included, are 0. Norm of the Jacobian at most :math:`1/\tau`.

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> capped_simplex_topk(torch.tensor([2.0, 0.25, 0.0, -2.0]), 1.5)
    tensor([1.0000, 0.3750, 0.1250, 0.0000])

    Reference: Martins and Astudillo 2016 (arXiv:1602.02068) for k = 1; Malaviya et al. 2018
    (arXiv:1805.08241) §3 for budgets.
    """
    return threshold_topk(
        "capped_simplex_topk",
        scores,
        k,
        curve=CAPPED_SIMPLEX,
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
    ).mask


def sparsemax(
    scores: Float[Tensor, "..."],
    *,
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""The nearest point of the probability simplex: :func:`capped_simplex_topk` at k = 1.

    .. math:: p = \arg\min_{q \ge 0,\ \sum q = 1} \tfrac12 \lVert q - x/\tau \rVert^2

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])

    Reference: Martins and Astudillo 2016 (arXiv:1602.02068) §2.
    """
    return threshold_topk(
        "sparsemax",
        scores,
        1,
        curve=CAPPED_SIMPLEX,
        temperature=temperature,
        mask=mask,
        dim=dim,
        out_dtype=out_dtype,
    ).mask
