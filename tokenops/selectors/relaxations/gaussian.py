"""Gaussian threshold: the mean field of Top-K under Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.shapes import Bool, Float, Int


def _density(p: Tensor) -> Tensor:
    tail = torch.minimum(p, 1 - p).clamp(min=torch.finfo(p.dtype).tiny)
    inside = (p > 0) & (p < 1)
    z = torch.special.ndtri(tail)
    return torch.where(inside, (-z * z / 2).exp() / math.sqrt(2 * math.pi), 0.0)


GAUSSIAN = Curve(
    name="gaussian",
    value=torch.special.ndtr,
    density=_density,
    quantile=torch.special.ndtri,
    variance=1.0,
    steepness=1 / math.sqrt(2 * math.pi),
)


@register("relaxation", paper="arXiv:2002.08676")
def gaussian_topk(
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
    r"""Soft Top-K by the distribution function of the normal distribution.

    .. math:: p_i = \Phi\!\left(\frac{x_i - \nu}{\tau}\right), \qquad \sum_i p_i = k

    The chance that a score under Gaussian noise of scale :math:`\tau` passes a fixed threshold, and so a
    smooth stand-in, without sampling, for :func:`perturbed_topk`. Tails fall off faster than those of the
    logistic curve: far tokens get no gradient in float32. Norm of the Jacobian at most :math:`0.399/\tau`.

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> gaussian_topk(torch.tensor([2.0, 0.0, -2.0]), 1.5)
    tensor([0.9772, 0.5000, 0.0228])

    Reference: the perturbed optimisers it stands in for: Berthet et al. 2020 (arXiv:2002.08676) §3.
    """
    return threshold_topk(
        "gaussian_topk",
        scores,
        k,
        curve=GAUSSIAN,
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
    ).mask
