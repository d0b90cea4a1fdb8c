"""Systematic sampling: a hard mask of k ones whose mean is the soft mask, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.relaxations.apply import threshold_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.family import curve_of
from tokenops.selectors.relaxations.noise import draw_uniform
from tokenops.shapes import Bool, Float, Int


@register("sampler")
def systematic_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    method: str | Curve = "sigmoid",
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    segments: Int[Tensor, "..."] | None = None,
    dim: int = -1,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Hard Top-K mask drawn by systematic sampling of a soft one.

    .. math:: m_{\pi_i} = \lfloor c_i + u \rfloor - \lfloor c_{i-1} + u \rfloor, \qquad
        c_i = p_{\pi_1} + \dots + p_{\pi_i}, \qquad \mathrm{E}\,m = p

    p is :func:`soft_topk` of the scores, :math:`\pi` a random order and u uniform on [0, 1). Exactly k ones
    when k is an integer, else the integer below or above, so that the mean stays p. The gradient is that of
    p: as E m = p, it is unbiased for every function linear in the mask.

    Arguments, shapes and errors as in :func:`soft_topk`. A ratio is not rounded first: it is met on average.

    >>> x = torch.tensor([9.0, 0.0, 0.0, -9.0])
    >>> systematic_topk(x, 2, generator=torch.Generator().manual_seed(1))
    tensor([1., 0., 1., 0.])

    Reference: Madow 1949, "On the theory of systematic sampling, II", Ann. Math. Statist. 20(3). The sums
    run in float64; where the rounding of p would miss k (a chance below 10⁻⁷ k in float32) the likeliest
    token left out is added or the unlikeliest chosen dropped.
    """

    def choose(p: Tensor, k: Tensor, valid: Tensor) -> Tensor:
        u = draw_uniform((*p.shape[:-1], 1), p, generator)
        order = draw_uniform(p.shape, p, generator).argsort(-1)
        ticks = (p.gather(-1, order).double().cumsum(-1) + u).floor()
        hit = ticks.diff(dim=-1, prepend=torch.zeros_like(u)).clamp(max=1).to(p.dtype)
        # below 1/2 where not hit and at least 1 where hit: Top-K only repairs a count
        rank = torch.zeros_like(p).scatter(-1, order, hit) + p * 0.5
        return hard_topk(rank, random_count(k, u)[..., 0], mask=valid)

    return threshold_topk(
        "systematic_topk",
        scores,
        k,
        curve=curve_of("systematic_topk", method),
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        choose=choose,
        out_dtype=out_dtype,
    ).mask


def random_count(k: Tensor, u: Tensor) -> Tensor:
    """The integer below or above k, floor(k + u): k on average, and k itself if it is an integer."""
    whole = k.detach().floor()
    return whole.long() + (u >= 1 - (k.detach() - whole)).long()
