"""Sigmoid threshold: every score passes one logistic curve, shifted so that the mask sums to k."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.shapes import Bool, Float, Int

LOGISTIC = Curve(
    name="sigmoid",
    value=torch.sigmoid,
    density=lambda p: torch.addcmul(p, p, p, value=-1),
    quantile=torch.logit,
    variance=1.702**2,  # of the normal distribution function that comes nearest to it
    steepness=0.25,
    of_exp=lambda z: z / (1 + z),
    points=2,
    refill=lambda u, v: torch.addcmul(u.sigmoid_(), u, u, value=-1, out=v),
)


@register("relaxation", paper="arXiv:2510.16598")
def sigmoid_topk(
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
    r"""Soft Top-K by a logistic curve; VisionSelector's relaxation.

    .. math:: p_i = \frac{1}{1 + e^{-(x_i - \nu)/\tau}}, \qquad \sum_i p_i = k

    The point of the capped simplex that maximises :math:`\langle p, x\rangle + \tau \sum_i h(p_i)`, h the
    binary entropy. Never exactly 0 or 1 on paper, so every token keeps a gradient. Norm of the Jacobian at
    most :math:`1/(4\tau)`.

    Arguments, shapes and errors as in :func:`soft_topk`.

    >>> sigmoid_topk(torch.tensor([2.0, 0.0, -2.0]), 1.5)
    tensor([0.8808, 0.5000, 0.1192])

    Reference: VisionSelector (arXiv:2510.16598) §3.2; also known as the limited multi-label projection
    (arXiv:1906.08707) and as entropic optimal transport to two anchors (arXiv:2002.06504).
    """
    return threshold_topk(
        "sigmoid_topk",
        scores,
        k,
        curve=LOGISTIC,
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
    ).mask
