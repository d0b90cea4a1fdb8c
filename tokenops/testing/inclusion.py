"""Exact chances of three tokens to be among the k highest noisy scores, to hold samplers to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# distribution function and density of each noise
NOISES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gumbel": (lambda z: (-(-z).exp()).exp(), lambda z: (-z - (-z).exp()).exp()),
    "logistic": (torch.sigmoid, lambda z: z.sigmoid() * (-z).sigmoid()),
    "gaussian": (torch.special.ndtr, lambda z: (-z * z / 2).exp() / math.sqrt(2 * math.pi)),
}


def inclusion(scores: Tensor, k: int, *, noise: str, scale: float | Tensor = 1.0) -> Tensor:
    r"""By quadrature, differentiable, for k of 1 or 2; F and f belong to the noise.

    .. math:: P(i \in \mathrm{Top}_1) = \int f(z) \prod_{j \ne i} F(z + (x_i - x_j)/\beta)\,dz, \qquad
        P(i \in \mathrm{Top}_2) = 1 - \int f(z) \prod_{j \ne i} (1 - F(z + (x_i - x_j)/\beta))\,dz

    Shapes: scores (3) float64 -> (3).

    >>> inclusion(torch.zeros(3).double(), 2, noise="logistic")
    tensor([0.6667, 0.6667, 0.6667], dtype=torch.float64)
    """
    cdf, pdf = NOISES[noise]
    z = torch.linspace(-40, 60, 20_001, dtype=torch.float64)
    x = scores / scale
    above = cdf(z + x[:, None, None] - x[None, :, None])
    each = above if k == 1 else 1 - above
    others = ~torch.eye(3, dtype=torch.bool)
    extreme = (pdf(z) * each[others].view(3, 2, -1).prod(1)).sum(-1) * float(z[1] - z[0])
    return extreme if k == 1 else 1 - extreme


def plackett_luce(scores: Tensor, k: int) -> Tensor:
    r"""In closed form, for Gumbel noise and k of 1 or 2, with weights w = e^x of sum W.

    .. math:: P(i \in \mathrm{Top}_1) = \frac{w_i}{W}, \qquad
        P(i \in \mathrm{Top}_2) = \frac{w_i}{W} + \sum_{j \ne i} \frac{w_j}{W} \frac{w_i}{W - w_j}

    Shapes: scores (3) -> (3).

    >>> plackett_luce(torch.tensor([1.0, 1.0, 2.0]).log(), 2)
    tensor([0.5833, 0.5833, 0.8333])
    """
    w = scores.exp()
    first = w / w.sum()
    if k == 1:
        return first
    odds = first / (w.sum() - w)
    return first + w * (odds.sum() - odds)


def follows(sampler: Any, mean: Callable[[Tensor, int], Tensor], *, rows: int = 200_000) -> None:
    """The mean of ``rows`` draws among padding is ``mean(scores (3), k)``, to five standard deviations."""
    mask, generator = torch.tensor([False, True, True, False, True]), torch.Generator().manual_seed(0)
    for scores in ([0.0, 0.0, 0.0], [1.0, 0.0, -0.5], [-2.0, 1.5, 0.25], [0.5, 3.0, -4.0]):
        for k in (1, 2):
            x = torch.full((5,), 9.0).masked_scatter(mask, torch.tensor(scores))
            m = sampler(x.expand(rows, 5), k, mask=mask.expand(rows, 5), generator=generator)
            got, p = m.double().mean(0)[mask], mean(torch.tensor(scores, dtype=torch.float64), k)
            allowed = 5 * ((p * (1 - p)).clamp(min=1 / rows) / rows).sqrt()
            assert ((got - p).abs() <= allowed).all(), (
                f"scores {scores}, k = {k}: {got.tolist()} not {p.tolist()}"
            )
