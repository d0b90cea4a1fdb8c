"""Rotary positions, given as the cosines and sines a layer gets."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.shapes import Float

Rope = tuple[Tensor, Tensor]


def rotate(x: Float[Tensor, "b h l e"], rope: Rope) -> Float[Tensor, "b h l e"]:
    """Rotary positions as Llama applies them: ``x cos + (-x₂, x₁) sin``, x = (x₁, x₂); cos, sin (b l e).

    >>> rotate(torch.tensor([[[[1.0, 2.0]]]]), (torch.zeros(1, 1, 2), torch.ones(1, 1, 2)))
    tensor([[[[-2.,  1.]]]])
    """
    cos, sin = (t.to(x.dtype)[:, None] for t in rope)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
