"""Entmax at budget k: between the clipped exponential (alpha = 1) and the capped simplex (alpha = 2)."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.capped_simplex import CAPPED_SIMPLEX
from tokenops.selectors.relaxations.curves import Curve
from tokenops.shapes import Bool, Float, Int


def entmax_curve(alpha: float) -> Curve:
    r"""The curve of :func:`entmax_topk`, a power clipped at 1.

    .. math:: C(u) = \min(1, [1 + (\alpha-1) u]_+^{1/(\alpha-1)})

    For alpha = 1 that is :math:`\min(1, e^u)`.

    Raises:
        TokenOpsError: alpha outside [1, 2]; above 2 the density is unbounded.

    >>> entmax_curve(1.5).value(torch.tensor([-2.0, -1.0, 0.0, 1.0]))
    tensor([0.0000, 0.2500, 1.0000, 1.0000])
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 1 <= alpha <= 2:
        raise TokenOpsError("entmax_topk", "alpha in [1, 2]", repr(alpha))
    if alpha == 2:
        return CAPPED_SIMPLEX

    def density(p: Tensor) -> Tensor:
        inside = (p > 0) & (p < 1)
        return torch.where(inside, p, 1.0).pow(2 - alpha) * inside

    slope = alpha - 1

    def value(u: Tensor) -> Tensor:
        if slope >= 0.5:
            return (slope * u + 1).clamp(0, 1).pow(1 / slope)
        # a high power would magnify the rounding of its base
        return ((slope * u).clamp(-1, 0).log1p() / slope if slope else u.clamp(max=0)).exp()

    return Curve(
        name=f"entmax({alpha:g})",
        value=value,
        density=density,
        quantile=lambda p: (slope * p.log()).expm1() / slope if slope else p.log(),
        mean=-1 / alpha,
        variance=1 / ((2 * alpha - 1) * alpha**2),
        steepness=1.0,
        symmetric=False,
        smooth=False,
    )


@register("relaxation", paper="arXiv:1905.05702")
def entmax_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    alpha: float = 1.5,
    ratio: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    segments: Int[Tensor, "..."] | None = None,
    dim: int = -1,
    hard: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Soft Top-K by Tsallis entropies: zeros and ones are exact, smoother than the capped simplex near zero.

    .. math:: p_i = \min\big(1, [1 + (\alpha - 1)(x_i - \nu)/\tau]_+^{1/(\alpha - 1)}\big), \qquad
        \sum_i p_i = k

    alpha, in [1, 2], is 2 for :func:`capped_simplex_topk` and 1 for the clipped exponential, which is softmax
    at k = 1. At k = 1 the cap is idle and the mask is the alpha-entmax of the scores. The curve is one-sided:
    :math:`\nu` is where p reaches 1, and ``1 - f(x, k)`` is not ``f(-x, n - k)``. Norm of the Jacobian at
    most :math:`1/\tau`.

    Other arguments, shapes and errors as in :func:`soft_topk`.

    >>> entmax_topk(torch.tensor([2.0, 1.0, 0.0, -9.0]), 1.5)
    tensor([1.0000, 0.4665, 0.0335, 0.0000])

    Reference: Peters et al. 2019 (arXiv:1905.05702) §3 for k = 1; the cap makes it a budget.
    """
    return threshold_topk(
        "entmax_topk",
        scores,
        k,
        curve=entmax_curve(alpha),
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
    ).mask


def entmax15(
    scores: Float[Tensor, "..."],
    *,
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""1.5-entmax, between softmax and sparsemax: :func:`entmax_topk` at k = 1.

    .. math:: p_i = [(x_i/\tau - \nu)/2]_+^2, \qquad \sum_i p_i = 1

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> entmax15(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.6740, 0.3260, 0.0000])

    Reference: Peters et al. 2019 (arXiv:1905.05702) §3.
    """
    return threshold_topk(
        "entmax15",
        scores,
        1,
        curve=entmax_curve(1.5),
        temperature=temperature,
        mask=mask,
        dim=dim,
        out_dtype=out_dtype,
    ).mask
