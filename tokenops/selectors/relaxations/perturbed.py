"""Perturbed Top-K: the average of hard Top-Ks of noisy scores, with an unbiased gradient."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError, check_ints
from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.relaxations.apply import budgeted, check_out_dtype, check_scores, whole
from tokenops.selectors.relaxations.cut import valid_tokens
from tokenops.selectors.relaxations.noise import draw_noise
from tokenops.shapes import Bool, Float

# minus the gradient of the log-density of each noise
SLOPES = {"gaussian": lambda z: z, "gumbel": lambda z: -torch.expm1(-z)}


class Once(torch.autograd.Function):
    """A gradient that depends on x in a way autograd does not see: differentiating it again raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor) -> Tensor:
        """The gradient as it is; x is what it was taken at."""
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Refuse."""
        raise TokenOpsError("perturbed_topk", "first derivatives only", "a second")


class Perturbed(torch.autograd.Function):
    r"""Counts over samples, and the covariance that is their gradient.

    With :math:`m_s` the mask of sample s, :math:`a_s = \langle g, m_s\rangle`, g the incoming gradient and
    :math:`w = -\nabla \log` of the density of the noise:

    .. math:: \partial u = \frac{1}{S - 1} \sum_s (a_s - \bar a)\, w(Z_s)

    Adding a number to every score changes no mask, so the mean of this over the tokens is 0 in expectation;
    it is subtracted, which keeps the estimate unbiased and takes noise out.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, z: Tensor, count: Tensor, valid: Tensor, noise: str) -> tuple[Tensor, Tensor]:
        """Shapes: u (... n), z (s ... n), count (...), valid (... n) -> mean (... n), masks (s ... n)."""
        chosen = hard_topk(u + z, count.expand(z.shape[:-1]), mask=valid.expand(z.shape))
        return chosen.sum(0, dtype=u.dtype) / len(z), chosen

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the noise and the masks, not their indices."""
        u, z, count, valid, ctx.noise = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(u, z, count, valid, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the scores."""
        g, (u, z, count, valid, chosen) = grads[0], ctx.saved_tensors
        total = valid.sum(-1, True)
        a = torch.where(chosen, g, 0.0).sum(-1, True)
        du = ((a - a.mean(0)) * SLOPES[ctx.noise](z)).sum(0) / (len(z) - 1)
        du = du - du.masked_fill(~valid, 0.0).sum(-1, True) / total.clamp(min=1)
        free = valid & (count[..., None] > 0) & (count[..., None] < total)
        return Once.apply(du.masked_fill(~free, 0.0), u), None, None, None, None


@register("sampler", paper="arXiv:2002.08676")
def perturbed_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    samples: int = 100,
    sigma: float | Tensor = 1.0,
    noise: Literal["gaussian", "gumbel"] = "gaussian",
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Mean of S hard Top-K masks of noisy scores, an estimate of a smooth mask and its unbiased gradient.

    .. math:: y = \frac1S \sum_{s} \mathrm{TopK}_k(x + \sigma Z_s), \qquad
        \frac{\partial\,\mathrm{E}\,y}{\partial x} = \frac1\sigma\,\mathrm{Cov}(y, w(Z)), \qquad
        w(Z) = Z \text{ or } 1 - e^{-Z}

    w belongs to Gaussian and to Gumbel noise; with the latter, E y are the inclusion probabilities of hard
    :func:`gumbel_topk`. The gradient is the sample covariance, unbiased for functions linear in the mask: its
    mean is subtracted and it is divided by S - 1. Each entry has a variance near
    :math:`\mathrm{Var}\langle g, m\rangle / (S \sigma^2)`, m one of the masks. Second derivatives are
    refused. Five bytes per sample and score are kept for the backward pass.

    Args:
        scores: any shape; tokens run along ``dim``.
        k: a count, a number or a tensor per row, rounded; it gets no gradient. ``k <= 0`` gives zeros,
            ``k >= valid`` ones.
        ratio: instead of k, the share of the valid tokens, in [0, 1]; rounded down, but at least one token.
        samples: number S of noisy Top-Ks, at least 2.
        sigma: scale of the noise in units of the scores, > 0, a number or a tensor per row; differentiable.
        noise: ``"gaussian"`` or ``"gumbel"``.
        mask: like ``scores``, False for padding, which gets 0 and no gradient whatever it holds; a score of
            ``-inf`` counts as padding. NaN makes its own row NaN.
        dim: the token axis.
        generator: the only source of randomness.
        out_dtype: float32 for half-precision scores by default, else the dtype of the scores.

    Returns:
        The mask, in multiples of 1/S, shaped like ``scores``; every row sums to the rounded k.

    Raises:
        TokenOpsError: bad scores, mask, k, ratio, samples, sigma, noise, dim, generator or out_dtype.

    >>> perturbed_topk(torch.tensor([9.0, 0.0, -9.0]), 1, generator=torch.Generator().manual_seed(0))
    tensor([1., 0., 0.])

    Reference: Berthet et al. 2020 (arXiv:2002.08676) §3; Cordonnier et al. 2021 (arXiv:2104.03059) §3.2,
    who keep ordered one-hot vectors (S k n) and subtract no mean.
    """
    check_scores("perturbed_topk", scores, mask, dim)
    check_out_dtype("perturbed_topk", out_dtype)
    _check(samples, sigma, noise)
    mask = None if mask is None else mask.movedim(dim, -1)
    x, k, sigma = budgeted("perturbed_topk", scores.movedim(dim, -1), k, ratio, sigma, mask)
    valid = valid_tokens(x, mask)
    count = torch.as_tensor(whole(k, ratio is not None), device=x.device).expand(x.shape[:-1])
    limit = torch.finfo(x.dtype).max / 4
    u = (x.masked_fill(~valid, 0.0) / sigma).clamp(-limit, limit)
    z = draw_noise(noise, u.detach().expand(samples, *u.shape), generator)
    y, _ = Perturbed.apply(u, z, count, valid, noise)
    broken = u.isnan().any(-1, True)
    if isinstance(sigma, Tensor):
        broken = broken | ~(sigma > 0)
    if isinstance(k, Tensor):
        broken = broken | k.isnan()
    y = torch.where(broken & valid, math.nan, y)
    return y.to(out_dtype or x.dtype).movedim(-1, dim)


def _check(samples: int, sigma: float | Tensor, noise: str) -> None:
    check_ints("perturbed_topk", samples=(samples, 2))
    if not isinstance(sigma, Tensor) and not (isinstance(sigma, float | int) and 0 < sigma < math.inf):
        raise TokenOpsError("perturbed_topk", "sigma as a tensor per row or a number > 0", repr(sigma))
    if noise not in SLOPES:
        raise TokenOpsError("perturbed_topk", f"noise as one of {', '.join(SLOPES)}", repr(noise))
