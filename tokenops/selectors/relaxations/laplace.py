"""Laplace threshold: exponential tails on both sides of the cut."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.shapes import Bool, Float, Int


def _value(u: Tensor) -> Tensor:
    tail = (-u.abs()).exp() / 2
    return torch.where(u < 0, tail, 1 - tail)


def _quantile(p: Tensor) -> Tensor:
    return torch.where(p < 0.5, (2 * p).log(), -(2 * (1 - p)).log())


LAPLACE = Curve(
    name="laplace",
    value=_value,
    density=lambda p: torch.minimum(p, 1 - p),
    quantile=_quantile,
    variance=2.0,
    steepness=0.5,
    of_exp=lambda z: torch.where(z < 1, z / 2, 1 - 0.5 / z),
)


@register("relaxation", paper="arXiv:2503.06242")
def laplace_topk(
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
    r"""Soft Top-K by the distribution function of the Laplace distribution.

    .. math:: p_i = \tfrac12 e^{u_i}\ (u_i < 0), \quad 1 - \tfrac12 e^{-u_i}\ (u_i \ge 0), \qquad
        u_i = (x_i - \nu)/\tau, \quad \sum_i p_i = k

    A sharper knee than the logistic curve at the same tails: the gradient of a token decays as
    :math:`e^{-|u|}` on either side. Norm of the Jacobian at most :math:`1/(2\tau)`.

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> laplace_topk(torch.tensor([2.0, 0.0, -2.0]), 1.5)
    tensor([0.9323, 0.5000, 0.0677])

    Reference: LapSum (arXiv:2503.06242) §3, which sorts the scores; here the threshold is found without.
    """
    return threshold_topk(
        "laplace_topk",
        scores,
        k,
        curve=LAPLACE,
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
    ).mask
