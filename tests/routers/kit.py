"""Query and key projections of a layer, and the plain forms of what is made from them."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tokenops.routers import LowRankAttention
from tokenops.testing.drawing import Draw

F64 = torch.float64
EXACT = {"rtol": 0.0, "atol": 1e-9}


class Layer:
    """Query and key projections of a layer, float64."""

    def __init__(self, draw: Draw | None = None) -> None:
        draw_ = draw.integer if draw else lambda low, high: high
        self.g, self.e = draw_(1, 3), 2 * draw_(1, 3)
        self.h = self.g * draw_(1, 3)
        self.d = draw_(1, 10)
        normal = draw.normal if draw else torch.randn
        self.w_q = normal(self.h * self.e, self.d, dtype=F64)
        self.w_k = normal(self.g * self.e, self.d, dtype=F64)
        self.b_q, self.b_k = normal(self.h * self.e, dtype=F64), normal(self.g * self.e, dtype=F64)

    def low_rank(self, rank: int, *, bias: bool = True, **options: Any) -> LowRankAttention:
        given = {"bias_q": self.b_q, "bias_k": self.b_k} if bias else {}
        sizes = {"heads": self.h, "kv_heads": self.g}
        return LowRankAttention.from_weights(self.w_q, self.w_k, rank=rank, **sizes, **given, **options)

    def queries_and_keys(self, x: Tensor, *, bias: bool = True) -> tuple[Tensor, Tensor]:
        q, k = x @ self.w_q.T + self.b_q * bias, x @ self.w_k.T + self.b_k * bias
        return rearrange(q, "b l (h e) -> b h l e", h=self.h), rearrange(k, "b l (g e) -> b g l e", g=self.g)

    def logits(self, x: Tensor, *, bias: bool = True) -> Tensor:
        """Summed over heads, from -> to (b l l), less what is the same for a whole row."""
        q, k = self.queries_and_keys(x, bias=bias)
        return centred((q @ k.repeat_interleave(self.h // self.g, 1).transpose(-1, -2)).sum(1))


def centred(logits: Tensor) -> Tensor:
    """A softmax over the keys does not see the mean of a row."""
    return logits - logits.mean(-1, keepdim=True)


def low_rank_logits(layer: LowRankAttention, x: Tensor) -> Tensor:
    q, k = layer.queries_and_keys(x)
    groups = q.shape[1] // k.shape[1]
    return centred((q @ k.repeat_interleave(groups, 1).transpose(-1, -2)).sum(1)).detach()


def tail(weight: Tensor, rank: int) -> float:
    """The largest singular value that is left out."""
    values = torch.linalg.svdvals(weight)
    return float(values[rank]) if rank < len(values) else 0.0


def angles(b: int, l: int, e: int) -> tuple[Tensor, Tensor]:  # noqa: E741
    angle = torch.randn(b, l, e // 2, dtype=F64)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def drawn(draw: Draw) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Queries, keys and options of attention_scores: every case among them."""
    b, g, l, e = draw.integer(1, 3), draw.integer(1, 2), draw.integer(1, 9), draw.integer(1, 4)  # noqa: E741
    h = g * draw.integer(1, 3)
    q, k = (draw.normal(b, n, l, e, dtype=torch.float64) * 2 for n in (h, g))
    options = {
        "visual": draw.mask(b, l),
        "mask": draw.choice(None, draw.mask(b, l)),
        "queries": draw.choice(None, draw.mask(b, l)),
        "causal": draw.choice(True, False),
        "scale": draw.choice(None, 0.3),
    }
    return q, k, options
