"""The same scores from whole maps, one sample at a time with its padding taken out, to test against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_scores(
    q: Tensor,
    k: Tensor,
    *,
    visual: Tensor,
    mask: Tensor | None = None,
    queries: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """(b h l e), (b g l e) -> (b l)."""
    out = torch.zeros(visual.shape, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    for i in range(q.shape[0]):
        real = (torch.ones_like(visual[i]) if mask is None else mask[i]).nonzero().flatten()
        length = len(real)
        logits = factor * q[i][:, real].to(out.dtype) @ k[i][:, real].to(out.dtype).transpose(1, 2)
        sees = torch.ones(length, length, dtype=torch.bool, device=q.device)
        sees = sees.tril() if causal else sees
        attention = logits.masked_fill(~sees, -float("inf")).softmax(-1).mean(0)
        asked = torch.ones_like(real, dtype=torch.bool) if queries is None else queries[i, real]
        scores = []
        for token in range(length):
            factors = []
            for kind in (visual[i, real], ~visual[i, real]):
                rows = kind & asked
                anyone = (rows & sees[:, token]).any()
                factors.append(attention[rows, token].mean() if anyone else attention.new_tensor(1 / length))
            score = factors[0] * factors[1]
            scores.append(score if visual[i, real[token]] else score * 0)
        if scores:
            out[i, real] = torch.stack(scores)
    return out


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank, from the eigenvectors of W W^T."""
    _, vectors = torch.linalg.eigh(weight @ weight.T)
    kept = vectors[:, -rank:]
    return kept @ (kept.T @ weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as complex numbers: entry i and entry i + e/2 are one, turned by its angle."""
    half = x.shape[-1] // 2
    number = torch.complex(x[..., :half], x[..., half:])
    turned = number * torch.complex(cos[:, None, :, :half], sin[:, None, :, :half])
    return torch.cat([turned.real, turned.imag], -1)
