"""Exact Top-K as a mask: a count per row, a fixed rule for ties, no gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.order import ascending, by_numpy
from tokenops.registry import register
from tokenops.shapes import Bool, Float, Int

__all__ = ["hard_topk"]

MANY, LONG = 2**14, 2**8
"""Scores, and scores in a row, from which numpy's partition is quicker than ``torch.topk`` on a CPU."""


@register("kernel")
def hard_topk(
    scores: Float[Tensor, "... n"],
    k: int | Int[Tensor, "..."],
    *,
    mask: Bool[Tensor, "... n"] | None = None,
) -> Bool[Tensor, "... n"]:
    r"""True at the ``min(k, valid)`` highest scores of every row.

    .. math:: m_i = 1 \iff \#\{j : s_j > s_i \text{ or } (s_j = s_i,\ j < i)\} < k

    over the valid tokens of a row.

    Equal scores: the lowest index wins. NaN and ``-inf`` rank below every number but above padding, so the
    count stays exact. ``k <= 0`` keeps nothing.

    Shapes: scores (... n), k int or (...), mask (... n), False for padding -> (... n) bool.

    Raises:
        TokenOpsError: scores that are no float tensor, a mask of another shape or dtype, a fractional k.

    >>> hard_topk(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    if not scores.is_floating_point() or scores.ndim == 0:
        raise TokenOpsError("hard_topk", "a float tensor (... n)", f"{scores.dtype} {tuple(scores.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != scores.shape):
        raise TokenOpsError(
            "hard_topk", f"mask (... n) bool {tuple(scores.shape)}", f"{mask.dtype} {tuple(mask.shape)}"
        )
    if isinstance(k, Tensor):
        if k.is_floating_point() or k.dtype == torch.bool:
            raise TokenOpsError("hard_topk", "an integer k", k.dtype)
        k = k[..., None]
    elif isinstance(k, bool) or not isinstance(k, int):
        raise TokenOpsError("hard_topk", "an integer k", repr(k))
    n = scores.shape[-1]
    if n == 0 or (isinstance(k, int) and k <= 0):
        return torch.zeros_like(scores, dtype=torch.bool)
    key = scores.detach().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    if mask is not None:
        key = key.masked_fill(~mask, -math.inf)
    k = k.long().clamp(0, n).expand(*scores.shape[:-1], 1) if isinstance(k, Tensor) else min(k, n)
    last = _last_kept(key, k)
    above, tied = key > last, key == last
    if mask is not None:
        # in a row of fewer valid tokens than k, padding ties with the lowest of them
        tied = tied & mask
    return above | (tied & (tied.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def _last_kept(key: Tensor, k: int | Tensor) -> Tensor:
    """The k-th highest key of every row (... 1), k an int or (... 1)."""
    n = key.shape[-1]
    if isinstance(k, Tensor):
        return ascending(key).gather(-1, (n - k).clamp(max=n - 1))
    if key.numel() >= MANY and n >= LONG and by_numpy(key):
        return ascending(key, n - k).narrow(-1, n - k, 1)
    return key.topk(k, -1, sorted=False).values.amin(-1, keepdim=True)
