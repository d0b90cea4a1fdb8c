"""Learned importance: how much all tokens agree with this one, in a learned query-key space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenops.errors import TokenOpsError, check_ints
from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.shapes import Bool, Float, Int

_CHUNK = 1 << 18  # numbers of one row converted to float32 at a time


def _pieces(x: Tensor, mask: Tensor | None, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the token axis in the wide dtype, zero at padding; all of it where no copy is needed."""
    if mask is None and x.dtype == wide:
        yield slice(0, x.shape[1]), x
        return
    step = max(1, _CHUNK // max(1, x.shape[2]))
    for start in range(0, x.shape[1], step):
        part = slice(start, start + step)
        piece = x[:, part]
        if mask is not None:
            piece = piece.masked_fill(~mask[:, part, None], 0.0)
        yield part, piece.to(wide)


class _Pool(torch.autograd.Function):
    """``w (b s n) @ x (b n d) -> (b s d)`` in the dtype of w, x converted piece by piece."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(w, x, mask)
        out = w.new_zeros(w.shape[0], w.shape[1], x.shape[2])
        for part, piece in _pieces(x, mask, w.dtype):
            out = out.baddbmm(w[:, :, part], piece)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, x, mask = ctx.saved_tensors
        dw = _Dot.apply(x, grads[0], mask).transpose(1, 2) if ctx.needs_input_grad[0] else None
        return dw, _outer(w.transpose(1, 2), grads[0], x, mask) if ctx.needs_input_grad[1] else None, None


class _Dot(torch.autograd.Function):
    """``x (b n d) @ a (b s d) -> (b n s)`` in the dtype of a, x converted piece by piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, a, mask)
        parts = [torch.bmm(piece, a.transpose(1, 2)) for _, piece in _pieces(x, mask, a.dtype)]
        return torch.cat(parts, 1) if parts else a.new_zeros(x.shape[0], 0, a.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, mask = ctx.saved_tensors
        dx = _outer(grads[0], a, x, mask) if ctx.needs_input_grad[0] else None
        return dx, _Pool.apply(grads[0].transpose(1, 2), x, mask) if ctx.needs_input_grad[1] else None, None


def _outer(w: Tensor, a: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """``w (b n s) @ a (b s d)`` as a gradient of x: its dtype, zero at padding."""
    out = torch.bmm(w, a).to(x.dtype)
    return out if mask is None else out.masked_fill(~mask[..., None], 0.0)


def _shares(
    x: Tensor, mask: Tensor | None, segments: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One-hot image of every token (b s n), zero at padding, and each divided by its count."""
    if segments is None:
        member = (torch.ones(x.shape[:2], device=x.device, dtype=torch.bool) if mask is None else mask)[
            :, None
        ]
    else:
        member = segments[:, None] == segments.unique()[:, None]
        member = member if mask is None else member & mask[:, None]
    one = member.to(wide)
    return one, one / one.sum(-1, True).clamp(min=1)


@register("scorer", paper="arXiv:2510.16598", sample=lambda: LearnedScorer(8))
class LearnedScorer(nn.Module):
    r"""VisionSelector's importance scorer in closed form.

    .. math::
        s_i = \frac1N \sum_j \frac{q_i^\top k_j}{\sqrt h} = \frac{x_i^\top a + b_q^\top \bar k}{\sqrt h},
        \qquad a = W_q^\top \bar k, \quad \bar k = W_k \bar x + b_k

    The mean over j moves inside, so neither the (n n) matrix nor the (n h) queries and keys exist: O(n d)
    time and O(n) memory beside the features. Scores are float32 (float64 for float64), under autocast and for
    half-precision features too: in bfloat16 most scores tie.

    Args:
        dim: width d of the features.
        hidden: width h of queries and keys, ``dim // 2`` by default.
        trained_scope: the scope it was trained with, if known; ``Prune`` warns about another one.

    Shapes: x (b n d), mask (b n), segments (b n) -> (b n). With ``segments`` (the image of each token,
    negative for padding) the mean runs over the token's own image. Padding scores 0 and has no gradient.

    Raises:
        TokenOpsError: features of another width, rank or device; a mask or segments not shaped (b n).

    >>> scorer = LearnedScorer(8)
    >>> scorer(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5])

    Reference: VisionSelector (arXiv:2510.16598) §3.1. Deviation: the mean runs over one row or image, the
    released code's over everything in the sequence; pass the sequence as one row for the latter.
    """

    def __init__(self, dim: int, hidden: int | None = None, *, trained_scope: str | None = None) -> None:
        super().__init__()
        hidden = dim // 2 if hidden is None else hidden
        check_ints("LearnedScorer", dim=(dim, 1), hidden=(hidden, 1))
        self.dim, self.hidden, self.trained_scope = dim, hidden, trained_scope
        self.q_proj, self.k_proj = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights N(0, 1e-4²), biases 0: all scores start close to 0, all tokens equal.

        >>> scorer = LearnedScorer(8)
        >>> scorer.reset_parameters()
        >>> bool(scorer.q_proj.weight.abs().max() < 1e-3), bool(scorer.q_proj.bias.any())
        (True, False)
        """
        for proj in (self.q_proj, self.k_proj):
            nn.init.normal_(proj.weight, std=1e-4)
            nn.init.zeros_(proj.bias)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> LearnedScorer:
        """The scorer inside a released VisionSelector model, from a folder or the hub (``"owner/name"``).

        Opens, or downloads, only the shards that hold ``visual.importance_scorer.*``: weights (h d), biases
        (h,). It was trained with scores and budget over all images of a sample: ``trained_scope="sample"``.

        Raises:
            TokenOpsError: no such folder or repository, no scorer in it, a damaged file, or no float dtype.

        >>> LearnedScorer.from_pretrained("no/such/folder")
        Traceback (most recent call last):
        ...
        tokenops.errors.TokenOpsError: LearnedScorer.from_pretrained: an existing folder or a hub id ...

        Reference: VisionSelector (arXiv:2510.16598), checkpoints of its authors.
        """
        from tokenops.selectors.scorers.released import read_released

        if not dtype.is_floating_point:
            raise TokenOpsError("LearnedScorer.from_pretrained", "a floating dtype", dtype)
        weights = read_released(source, revision=revision)
        hidden, dim = weights["q_proj.weight"].shape
        scorer = cls(dim, hidden, trained_scope="sample").to(device=device, dtype=dtype)
        scorer.load_state_dict(weights)
        return scorer

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Scores of the tokens."""
        check_tokens("LearnedScorer", x, mask, width=self.dim)
        if x.device != self.q_proj.weight.device:
            raise TokenOpsError("LearnedScorer", f"x on {self.q_proj.weight.device}", x.device)
        if segments is not None:
            check_beside("LearnedScorer", "segments", segments, x, torch.long)
            mask = segments >= 0 if mask is None else mask & (segments >= 0)
        wide = torch.promote_types(torch.promote_types(x.dtype, self.q_proj.weight.dtype), torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            one, share = _shares(x, mask, segments, wide)
            wq, bq, wk, bk = (t.to(wide) for p in (self.q_proj, self.k_proj) for t in (p.weight, p.bias))
            k = F.linear(_Pool.apply(share, x, mask), wk, bk)
            dots = _Dot.apply(x, k @ wq, mask) + (k @ bq)[:, None]
            return (dots * one.transpose(1, 2)).sum(-1) / self.hidden**0.5

    def __repr__(self) -> str:
        scope = f", trained_scope={self.trained_scope!r}" if self.trained_scope else ""
        return f"LearnedScorer({self.dim}, hidden={self.hidden}{scope})"
