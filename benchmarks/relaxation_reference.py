"""What published code does, written from its description, for ``relaxations.py`` to measure against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

STEPS = 64
_slope = vmap(vmap(grad(torch.sigmoid)))


class BisectionTopK(torch.autograd.Function):
    r"""The sigmoid threshold as VisionSelector releases it: bisection, all in the dtype of the scores.

    .. math:: p_i = \sigma(x_i + t), \quad t \in [-\max x - 10,\ -\min x + 10] \text{ halved 64 times}

    The backward pass differentiates the sigmoid with ``vmap(vmap(grad))``, as that code does.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> Tensor:
        """``scores`` (b n) -> mask (b n)."""
        assert 0 < k < scores.shape[1]
        low = -scores.max(dim=1, keepdim=True).values - 10
        high = -scores.min(dim=1, keepdim=True).values + 10
        for _ in range(STEPS):
            middle = (low + high) / 2
            short = torch.sigmoid(scores + middle).sum(1) < k
            low[short], high[~short] = middle[short], middle[~short]
        shift = (low + high) / 2
        ctx.save_for_backward(scores, shift)
        return torch.sigmoid(scores + shift)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """diag(v) - v vᵀ / Σv, times the incoming gradient."""
        scores, shift = ctx.saved_tensors
        slope = _slope(scores + shift)
        weighted = grads[0] * slope
        return weighted - slope * weighted.sum(1, keepdim=True) / slope.sum(1, keepdim=True), None


def bisection_topk(scores: Tensor, k: int) -> Tensor:
    """:class:`BisectionTopK` as a function.

    Reference: VisionSelector (arXiv:2510.16598) §3.2 and its released code.
    """
    return BisectionTopK.apply(scores, k)


class PerturbedOneHot(torch.autograd.Function):
    r"""Perturbed Top-K with its samples held as one-hot vectors (b samples k n), as published copies do.

    .. math:: y = \frac1S \sum_s \mathrm{topk}(x + \sigma z_s), \qquad
        \partial x = \frac1{S\sigma} \sum_s \langle g, \mathrm{topk}_s \rangle\, z_s
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, samples: int, sigma: float) -> Tensor:
        """``scores`` (b n) -> mask (b n)."""
        noise = torch.randn(scores.shape[0], samples, scores.shape[1])
        chosen = (scores[:, None] + sigma * noise).topk(k, sorted=False).indices.sort(-1).values
        ones = torch.nn.functional.one_hot(chosen, scores.shape[1]).float()
        ctx.save_for_backward(ones, noise)
        ctx.sigma = sigma
        return ones.mean(1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The score-function estimate, without a baseline."""
        ones, noise = ctx.saved_tensors
        gain = torch.einsum("bskn,bn->bs", ones, grads[0])
        return torch.einsum("bs,bsn->bn", gain, noise) / (noise.shape[1] * ctx.sigma), None, None, None


def perturbed_one_hot(scores: Tensor, k: int, samples: int, sigma: float) -> Tensor:
    """:class:`PerturbedOneHot` as a function.

    Reference: Cordonnier et al. (arXiv:2104.03059), appendix.
    """
    return PerturbedOneHot.apply(scores, k, samples, sigma)
