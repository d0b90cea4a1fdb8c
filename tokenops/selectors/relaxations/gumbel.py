"""Gumbel Top-K: a sample without replacement, relaxed by any member of the threshold family."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.registry import register
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.family import soft_topk
from tokenops.shapes import Bool, Float, Int


@register("sampler", paper="arXiv:1903.06059")
def gumbel_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    method: str | Curve = "sigmoid",
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    segments: Int[Tensor, "..."] | None = None,
    dim: int = -1,
    hard: bool = False,
    noise_scale: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Soft or hard Top-K of scores with Gumbel noise.

    .. math:: m = \mathrm{TopK}_k(x + \beta G), \qquad
        P(i_1, \dots, i_k) = \prod_{j=1}^{k}
        \frac{e^{x_{i_j}/\beta}}{\sum_{l \notin \{i_1..i_{j-1}\}} e^{x_l/\beta}}

    ``hard=True`` is an exact sample without replacement with weights :math:`e^{x/\beta}` (Plackett-Luce):
    :math:`\beta` is ``noise_scale``, i_1 … i_k the chosen tokens by falling noisy score. Its gradient is that
    of the soft mask of the same noisy scores (straight-through, biased). The mean of the hard mask has no
    closed form and is not the soft mask of the scores; :func:`systematic_topk` and :func:`logistic_topk`
    sample that.

    Arguments, shapes and errors as in :func:`soft_topk`; ``method`` and ``temperature`` shape the soft mask
    and the gradient, ``noise_scale`` the distribution.

    >>> gumbel_topk(torch.zeros(4), 2, hard=True, generator=torch.Generator().manual_seed(0)).sum()
    tensor(2.)

    Reference: Kool et al. 2019 (arXiv:1903.06059) §3 for the sample; Xie and Ermon 2019 (arXiv:1901.10517)
    relax it by k rounds of softmax, which leave [0, 1]. Here the sum is k and no entry exceeds 1.
    """
    return soft_topk(
        scores,
        k,
        ratio=ratio,
        method=method,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        noise="gumbel",
        noise_scale=noise_scale,
        generator=generator,
        out_dtype=out_dtype,
    )
