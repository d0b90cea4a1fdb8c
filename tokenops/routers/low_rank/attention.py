"""Low-rank attention: a cheap guess of what one layer would look at."""

from __future__ import annotations

from math import inf
from numbers import Real

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenops.errors import TokenOpsError, check_ints
from tokenops.routers.low_rank.factors import check_weights, fold, split
from tokenops.routers.low_rank.rotary import Rope, rotate
from tokenops.routers.low_rank.scores import attention_scores
from tokenops.selectors.checks import check_tokens
from tokenops.shapes import Bool, Float
from tokenops.tokenmap.checks import check_field

SOFTMAX = ("joint", "head")


class LowRankAttention(nn.Module):
    r"""Scores of the visual tokens from a rank-R approximation of one layer's attention logits.

    ``softmax="joint"`` (ALVTS) is one softmax over the logits of all heads together, folded to rank R:

    .. math:: \tilde A = \mathrm{softmax}\Big(\frac1{\sqrt{d_k}} \sum_h \tilde q_h \tilde k_h^\top\Big),
        \qquad \sum_h \tilde q_h^\top \tilde k_h = (F_Q x + f)^\top F_K y

    with d_k the width of a head. It is one head of width R: O(l d R + l² R) time. Parameters ``q.weight``
    (R d), ``k.weight`` (R d) and, where the layer has a query bias, ``q.bias`` (R): 2Rd (+ R) numbers. A key
    bias adds the same to all logits of a row and drops out.

    ``softmax="head"`` keeps the heads apart, so that rotary positions can be applied; at full rank it is the
    layer's own attention. Parameters ``q.weight``, ``k.weight`` (R d), ``q_up.weight`` (h·e R),
    ``k_up.weight`` (g·e R) and, where the layer has biases, ``q_up.bias``, ``k_up.bias``; O(l² h e) time.

    Args:
        dim: width d of the layer's input. rank: R, at most d.
        heads, kv_heads, head_dim: h, g (h by default) and e (d / h by default) of the layer.
        bias: the layer's queries (or, for ``"head"``, keys) have a bias.
        scale: factor on the logits, e^-1/2 by default.
        causal: token j looks at tokens 0 … j only, as in the layer. Scores then favour the first tokens of an
            image: more rows can look at them, and the first rows have little else to look at.

    Shapes: x (b l d) the layer's normed input, see :meth:`scores` -> (b l). Queries and keys are made in the
    dtype of x, as the layer's own are, the map and the scores in float32 (float64 for float64), also under
    autocast.

    Raises:
        TokenOpsError: sizes that are no positive ints or do not fit; an unknown softmax.

    >>> layer = LowRankAttention(8, 2, heads=2)
    >>> visual = torch.tensor([[False, True, True, False]])
    >>> layer(torch.randn(1, 4, 8), visual=visual).shape
    torch.Size([1, 4])

    Reference: ALVTS (arXiv:2606.14277) §3. Deviations: factors folded and split evenly again; a new instance
    without weights draws them as ``nn.Linear`` does.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        softmax: str = "joint",
        scale: float | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_ints("LowRankAttention", dim=(dim, 1), rank=(rank, 1), heads=(heads, 1), kv_heads=(kv_heads, 1))
        if rank > dim:
            raise TokenOpsError("LowRankAttention", f"rank <= dim, {dim}", rank)
        if heads % kv_heads:
            raise TokenOpsError("LowRankAttention", f"kv_heads that divide heads, {heads}", kv_heads)
        if softmax not in SOFTMAX:
            raise TokenOpsError("LowRankAttention", f"softmax among {', '.join(SOFTMAX)}", repr(softmax))
        if scale is not None and (
            isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < inf
        ):
            raise TokenOpsError("LowRankAttention", "a finite scale > 0", repr(scale))
        if not isinstance(causal, bool):
            raise TokenOpsError("LowRankAttention", "causal as a bool", repr(causal))
        head_dim = dim // heads if head_dim is None else head_dim
        check_ints("LowRankAttention", head_dim=(head_dim, 1))
        self.dim, self.rank, self.heads, self.kv_heads, self.head_dim = dim, rank, heads, kv_heads, head_dim
        self.bias, self.softmax, self.causal = bias, softmax, causal
        self.scale = head_dim**-0.5 if scale is None else scale
        self.q_up: nn.Linear | None = None
        self.k_up: nn.Linear | None = None
        if softmax == "head":
            self.q_up = nn.Linear(rank, heads * head_dim, bias=bias)
            self.k_up = nn.Linear(rank, kv_heads * head_dim, bias=bias)
        self.q = nn.Linear(dim, rank, bias=bias and softmax == "joint")
        self.k = nn.Linear(dim, rank, bias=False)

    @classmethod
    @torch.no_grad()
    def from_weights(
        cls,
        w_q: Float[Tensor, "e d"],
        w_k: Float[Tensor, "f d"],
        *,
        rank: int,
        heads: int,
        kv_heads: int | None = None,
        bias_q: Float[Tensor, "e"] | None = None,
        bias_k: Float[Tensor, "f"] | None = None,
        softmax: str = "joint",
        svd: str = "factors",
        scale: float | None = None,
        causal: bool = True,
    ) -> LowRankAttention:
        """The best factors of a layer's query (h·e d) and key (g·e d) weights, float32 or wider.

        ``svd="factors"`` truncates W_Q and W_K, each at rank R, as the paper does; biases stay exact.
        ``svd="logits"`` (joint only) truncates the matrix of the summed logits, bias included: the nearest of
        rank R, exact where g·e <= R, and with few key heads much cheaper. Runs on the weights' device.

        Raises:
            TokenOpsError: weights and biases that do not fit each other, or are not finite.

        >>> LowRankAttention.from_weights(torch.randn(8, 8), torch.randn(4, 8), rank=2, heads=4, kv_heads=2)
        LowRankAttention(8, 2, heads=4, kv_heads=2, head_dim=2)
        """
        who = "LowRankAttention.from_weights"
        kv_heads = heads if kv_heads is None else kv_heads
        check_weights(who, w_q, w_k, bias_q, bias_k, heads, kv_heads)
        if svd not in ("factors", "logits") or (svd == "logits" and softmax == "head"):
            raise TokenOpsError(who, 'svd="factors", or "logits" with the joint softmax', repr(svd))
        size = {"heads": heads, "kv_heads": kv_heads, "head_dim": w_q.shape[0] // heads}
        bias = bias_q is not None or (softmax == "head" and bias_k is not None)
        with torch.device("meta"):
            rest = {"bias": bias, "softmax": softmax, "scale": scale, "causal": causal}
            made = cls(w_q.shape[1], rank, **size, **rest)
        wide = torch.promote_types(w_q.dtype, torch.float32)
        w_q, w_k = w_q.to(wide), w_k.to(wide)
        if softmax == "joint":
            f = None if bias_q is None else bias_q.to(wide)
            q, f, k = fold(w_q, f, w_k, rank=rank, heads=heads, kv_heads=kv_heads, svd=svd)
            state = {"q.weight": q, "k.weight": k} | ({} if f is None else {"q.bias": f})
        else:
            state = {}
            for name, weight, given in (("q", w_q, bias_q), ("k", w_k, bias_k)):
                state[f"{name}_up.weight"], state[f"{name}.weight"] = split(weight, rank)
                if bias:
                    given = weight.new_zeros(len(weight)) if given is None else given.to(wide)
                    state[f"{name}_up.bias"] = given
        own = {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        made.load_state_dict(own, assign=True)
        return made

    def needs(self) -> dict[str, bool]:
        """What a :class:`Route` supplies: rotary positions for heads kept apart, not for the joint map.

        >>> LowRankAttention(8, 2, heads=2).needs()
        {'visual': True, 'mask': False}
        """
        return {"visual": True, "mask": False} | ({"rope": False} if self.softmax == "head" else {})

    def scores(
        self,
        x: Float[Tensor, "b l d"],
        *,
        visual: Bool[Tensor, "b l"],
        mask: Bool[Tensor, "b l"] | None = None,
        queries: Bool[Tensor, "b l"] | None = None,
        causal: bool | None = None,
        rope: Rope | None = None,
        chunk: int | None = None,
        log: bool = False,
    ) -> Float[Tensor, "b l"]:
        """Scores of the visual tokens, 0 elsewhere; the arguments are those of :func:`attention_scores`.

        ``causal`` is the layer's own unless given.

        ``rope`` is (cos, sin), each (b l e) or (1 l e), as the layer gets them; M-RoPE arrives mixed.

        Raises:
            TokenOpsError: x of another width, rank or device; rope for the joint map; what
                :func:`attention_scores` refuses.

        >>> layer = LowRankAttention(8, 2, heads=2, causal=False)
        >>> x, visual = torch.randn(1, 3, 8), torch.tensor([[True, True, False]])
        >>> torch.equal(layer.scores(x, visual=visual), layer(x, visual=visual))
        True
        """
        q, k = self.queries_and_keys(x, mask=mask, rope=rope)
        return attention_scores(
            q,
            k,
            visual=visual,
            mask=mask,
            queries=queries,
            causal=self.causal if causal is None else causal,
            scale=self.scale,
            chunk=chunk,
            log=log,
        )

    forward = scores

    def queries_and_keys(
        self, x: Float[Tensor, "b l d"], *, mask: Bool[Tensor, "b l"] | None = None, rope: Rope | None = None
    ) -> tuple[Float[Tensor, "b h l e"], Float[Tensor, "b g l e"]]:
        """Approximate queries and keys, one head of width R for the joint softmax; padding is taken as 0.

        In the dtype of x, as the layer makes its own: float32 products would be the dearest part of scoring
        on a GPU. What :func:`attention_scores` makes of them is float32 or wider.

        Raises:
            TokenOpsError: x of another width, rank or device; a mask not (b l); rope for the joint map, or of
                other sizes.

        >>> layer = LowRankAttention(8, 2, heads=4, kv_heads=2, softmax="head")
        >>> q, k = layer.queries_and_keys(torch.randn(1, 3, 8))
        >>> q.shape, k.shape
        (torch.Size([1, 4, 3, 2]), torch.Size([1, 2, 3, 2]))
        """
        check_tokens("LowRankAttention", x, mask, width=self.dim)
        self._check_rope(x, rope)
        weight = self.q.weight
        if x.device != weight.device:
            raise TokenOpsError("LowRankAttention", f"x on {weight.device}", x.device)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        with torch.autocast(x.device.type, enabled=False):
            q, k = _linear(self.q, x), _linear(self.k, x)
            if self.q_up is None or self.k_up is None:
                return q[:, None], k[:, None]
            q, k = (
                rearrange(_linear(up, low), "b l (h e) -> b h l e", e=self.head_dim)
                for up, low in ((self.q_up, q), (self.k_up, k))
            )
            return (q, k) if rope is None else (rotate(q, rope), rotate(k, rope))

    def _check_rope(self, x: Tensor, rope: Rope | None) -> None:
        if rope is None:
            return
        if self.softmax == "joint":
            raise TokenOpsError("LowRankAttention", 'no rope with softmax="joint"', "rope")
        for name, table in zip(("cos", "sin"), rope, strict=True):
            shape = (None, x.shape[1], self.head_dim)
            check_field("LowRankAttention", name, table, None, shape, x.device)
            if table.shape[0] not in (1, x.shape[0]):
                raise TokenOpsError("LowRankAttention", f"{name} of {x.shape[0]} rows or 1", table.shape[0])

    def __repr__(self) -> str:
        extra = ", bias=True" if self.bias else ""
        extra += "" if self.softmax == "joint" else f", softmax={self.softmax!r}"
        extra += "" if self.scale == self.head_dim**-0.5 else f", scale={self.scale!r}"
        extra += "" if self.causal else ", causal=False"
        sizes = f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"
        return f"LowRankAttention({self.dim}, {self.rank}, {sizes}{extra})"


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the dtype of x."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)
