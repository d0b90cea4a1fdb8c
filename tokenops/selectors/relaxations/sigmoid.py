"""Sigmoid threshold: every score passes one logistic curve, shifted so that the mask sums to k."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.relaxations.threshold import Cdf, Threshold
from tokenops.shapes import Bool, Float


def _tail(z: Tensor) -> tuple[Tensor, Tensor]:
    inverse = (1 + z).reciprocal()
    return inverse, inverse


LOGISTIC = Cdf(torch.sigmoid, _tail, lambda p: p * (1 - p))


def _per_row(name: str, value: float | Tensor, batch: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
    """``value`` as (*batch, 1); only Python numbers are checked for their value."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.ndim > len(batch):
            raise TokenOpsError(
                "soft_topk", f"{name} per row {tuple(batch)}", f"{value.dtype} {tuple(value.shape)}"
            )
        value = value.to(dtype)
    else:
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            raise TokenOpsError("soft_topk", f"{name} as a number or a tensor", repr(value))
        if torch.finfo(dtype).max < abs(value) < math.inf:
            raise TokenOpsError("soft_topk", f"{name} that {dtype} can hold", value)
        value = torch.full((), value, dtype=dtype, device=like.device)
    try:
        return value.expand(batch)[..., None]
    except RuntimeError:
        raise TokenOpsError("soft_topk", f"{name} per row {tuple(batch)}", tuple(value.shape)) from None


def _check(
    scores: Tensor, mask: Tensor | None, temperature: float | Tensor, dim: int, out_dtype: torch.dtype | None
) -> None:
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim == 0:
        got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TokenOpsError("soft_topk", "scores as a float tensor of rank >= 1", got)
    if not -scores.ndim <= dim < scores.ndim:
        raise TokenOpsError("soft_topk", f"dim of a rank-{scores.ndim} tensor", dim)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != scores.shape):
        raise TokenOpsError(
            "soft_topk", f"mask bool {tuple(scores.shape)}", f"{mask.dtype} {tuple(mask.shape)}"
        )
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise TokenOpsError("soft_topk", "a float out_dtype", out_dtype)
    if isinstance(temperature, Real) and not 0 < temperature < math.inf:
        raise TokenOpsError("soft_topk", "a finite temperature > 0", temperature)
    wide = torch.promote_types(scores.dtype, torch.float32)
    if isinstance(temperature, Real) and not torch.finfo(wide).tiny <= temperature <= torch.finfo(wide).max:
        raise TokenOpsError("soft_topk", f"a temperature that {wide} can hold", temperature)


@register("relaxation", paper="arXiv:2510.16598")
def soft_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
    hard: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Soft Top-K mask, differentiable in the scores, in k and in the temperature.

    .. math:: p_i = \sigma\!\left(\frac{x_i - \nu}{\tau}\right), \qquad \sum_{i\ \mathrm{valid}} p_i = k

    It is the entropy-regularised projection of the scores on the capped simplex; :math:`\tau \to 0` gives the
    hard Top-K, :math:`\tau \to \infty` the constant k/n. Gradients of any order by reverse mode;
    forward-mode AD (``jvp``) is not offered.

    Args:
        scores: any shape; tokens run along ``dim``. Solved in float32 (float64 for float64).
        k: a *count*, real allowed: a number or a tensor per row. ``k <= 0`` gives zeros, ``k >= valid`` ones.
        temperature: in units of the scores, > 0: a number that the dtype solved in can hold, or a tensor per
            row. An entry of a tensor that is not above 0 makes its row NaN.
        mask: like ``scores``, False for padding, which gets 0 and no gradient whatever it holds; a score of
            ``-inf`` counts as padding. NaN makes its own row NaN.
        dim: the token axis.
        hard: exactly round(k) ones per row (lowest index wins ties) with the gradient of the soft mask.
        out_dtype: float32 for half-precision scores by default, else the dtype of the scores.

    Returns:
        The mask, in [0, 1], shaped like ``scores``.

    Raises:
        TokenOpsError: scores no float tensor, mask of another shape or dtype, bad k, temperature or dim.

    >>> soft_topk(torch.tensor([2.0, 0.0, -2.0]), 1.5)
    tensor([0.8808, 0.5000, 0.1192])

    Reference: VisionSelector (arXiv:2510.16598) §3.2, which bisects for :math:`\nu`; here Newton steps on
    a log-balance find the root, also where that one fails (k = 0, k = n, half precision, large scores).
    """
    _check(scores, mask, temperature, dim, out_dtype)
    x = scores.movedim(dim, -1)
    wide = torch.promote_types(x.dtype, torch.float32)
    valid = x != -float("inf")
    if mask is not None:
        valid = valid & mask.movedim(dim, -1)
    limit = torch.finfo(wide).max / 4
    x = x.to(wide).masked_fill(~valid, 0.0).clamp(-limit, limit)
    count = _per_row("k", k, x.shape[:-1], torch.float64, x)
    tau = _per_row("temperature", temperature, x.shape[:-1], wide, x)
    rank = None if isinstance(k, Tensor) else math.floor(min(max(k, 0), x.shape[-1]))
    p = x * 0 if x.shape[-1] == 0 else Threshold.apply(x, count, tau, valid, LOGISTIC, rank)
    if isinstance(temperature, Tensor):
        p = torch.where(tau > 0, p, math.nan)
    p = p.masked_fill(~valid, 0.0)
    if hard:
        ones = hard_topk(x, (count[..., 0].detach() + 0.5).floor().long(), mask=valid)
        p = ones.to(p.dtype) + (p - p.detach())
    return p.to(out_dtype or wide).movedim(-1, dim)
