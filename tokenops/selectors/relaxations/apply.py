"""What every member does around the threshold: arguments checked, axes moved, hard twin added."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tokenops.budget import EPSILON
from tokenops.errors import TokenOpsError
from tokenops.kernels.topk import hard_topk
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import Number, valid_tokens
from tokenops.selectors.relaxations.segments import check_segments, in_rows
from tokenops.selectors.relaxations.threshold import threshold_mask


@dataclass(slots=True)
class Relaxed:
    """A mask and its threshold as ``center - shift * tau``, one per row, without gradient."""

    mask: Tensor
    center: Tensor
    shift: Tensor
    tau: Number

    @property
    def threshold(self) -> Tensor:
        """In float64, without the token axis."""
        nu = self.center.double() - self.shift.double() * self.tau
        return (torch.where(self.tau > 0, nu, math.nan) if isinstance(self.tau, Tensor) else nu)[..., 0]


def check_number(who: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise TokenOpsError for what is no number in [low, high]."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise TokenOpsError(
            who, f"{name} as a tensor per row or a number in [{low:g}, {high:g}]", repr(value)
        )


def per_row(who: str, name: str, value: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """``value`` as (*batch, 1); TokenOpsError for another shape, bool or complex."""
    if value.dtype != torch.bool and not value.is_complex() and value.ndim <= len(batch):
        try:
            return value.to(dtype).expand(batch)[..., None]
        except RuntimeError:
            pass
    raise TokenOpsError(who, f"{name} per row {tuple(batch)}", f"{value.dtype} {tuple(value.shape)}")


def check_scores(who: str, scores: Tensor, mask: Tensor | None, dim: int) -> None:
    """Raise TokenOpsError for scores, a mask or an axis no relaxation can work with."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim == 0:
        got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TokenOpsError(who, "scores as a float tensor of rank >= 1", got)
    if isinstance(dim, bool) or not isinstance(dim, int) or not -scores.ndim <= dim < scores.ndim:
        raise TokenOpsError(who, f"dim of a rank-{scores.ndim} tensor", dim)
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != scores.shape:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TokenOpsError(who, f"mask bool {tuple(scores.shape)}", got)


def check_out_dtype(who: str, out_dtype: object) -> None:
    """Raise TokenOpsError for what is neither None nor a floating dtype."""
    if out_dtype is not None and not (isinstance(out_dtype, torch.dtype) and out_dtype.is_floating_point):
        raise TokenOpsError(who, "a float out_dtype", out_dtype)


def budgeted(
    who: str,
    scores: Tensor,
    k: Number | None,
    ratio: Number | None,
    temperature: Number,
    mask: Tensor | None,
) -> tuple[Tensor, Number, Number]:
    """Scores in float32 or wider, k (float64) and temperature, each a number or (... 1)."""
    if (k is None) == (ratio is None):
        raise TokenOpsError(who, "exactly one of k (a count) and ratio", f"k={k!r}, ratio={ratio!r}")
    x = scores.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    batch, n, finfo = x.shape[:-1], x.shape[-1], torch.finfo(x.dtype)
    if isinstance(temperature, Tensor):
        temperature = per_row(who, "temperature", temperature, batch, x.dtype)
    else:
        check_number(who, "temperature", temperature, finfo.tiny, finfo.max)
    if isinstance(k, Tensor):
        k = per_row(who, "k", k, batch, torch.float64).clamp(-1, n + 1)
        return x, k, temperature
    if ratio is None:
        check_number(who, "k", k, -math.inf, math.inf)
        assert k is not None
        count = float(min(max(k, -1), n + 1))
        return x, count, temperature
    if isinstance(ratio, Tensor):
        ratio = per_row(who, "ratio", ratio, batch, torch.float64).clamp(-1, 2)
    else:
        check_number(who, "ratio", ratio, 0.0, 1.0)
    count = valid_tokens(x, mask).sum(-1, True).double()
    return x, ratio * count, temperature


def threshold_topk(
    who: str,
    scores: Tensor,
    k: Number | None,
    *,
    curve: Curve,
    ratio: Number | None = None,
    temperature: Number = 1.0,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    dim: int = -1,
    hard: bool = False,
    out_dtype: torch.dtype | None = None,
    perturb: Callable[[Tensor], Tensor] | None = None,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Relaxed:
    """The mask, shaped like ``scores``, and where its threshold lies.

    ``perturb`` changes the scores of the rows, the same for soft and hard mask. ``choose`` makes the hard
    mask from the soft one, k (... 1) and the valid tokens, instead of Top-K of the scores.
    """
    check_scores(who, scores, mask, dim)
    check_out_dtype(who, out_dtype)
    last = dim in (-1, scores.ndim - 1)
    x = scores if last else scores.movedim(dim, -1)
    mask = mask if last or mask is None else mask.movedim(dim, -1)
    back = None
    if segments is not None:
        check_segments(who, scores, segments)
        budget = ratio if k is None else k
        x, mask, back = in_rows(who, x, mask, segments.movedim(dim, -1), budget)
    x, count, tau = budgeted(who, x, k, ratio, temperature, mask)
    x = x if perturb is None else perturb(x)
    if x.shape[-1] == 0:
        p, center, t = x * 0, x.new_zeros(*x.shape[:-1], 1), x.new_full((*x.shape[:-1], 1), -math.inf)
    else:
        p, center, t = threshold_mask(x, count, tau, mask, curve)
    if isinstance(tau, Tensor):
        p = torch.where(tau > 0, p, math.nan).masked_fill(~valid_tokens(x, mask), 0.0)
    if hard or choose is not None:
        p = straight_through(p, x, count, mask, ratio is not None, choose)
    p = p.to(out_dtype or p.dtype)
    p = p if back is None else back(p)
    return Relaxed(p if last else p.movedim(-1, dim), center, t, tau)


def straight_through(
    p: Tensor,
    x: Tensor,
    k: Number,
    mask: Tensor | None,
    ratio: bool,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The hard Top-K of ``x``, or what ``choose`` makes of p, k and valid tokens, with the gradient of p."""
    valid = valid_tokens(x, mask)
    if choose is None:
        ones = hard_topk(x, whole(k, ratio), mask=valid)
    else:
        k = k if isinstance(k, Tensor) else x.new_full((*x.shape[:-1], 1), k, dtype=torch.float64)
        ones = choose(p.detach(), k, valid)
    return (ones.to(p.dtype) + (p - p.detach())).masked_fill(~valid, 0.0)


def whole(k: Number, ratio: bool) -> int | Tensor:
    """K as integers (...): the next one; from a ratio above 0 as everywhere, down, and at least one token."""
    if not isinstance(k, Tensor):
        return math.floor(k + 0.5)
    if ratio:
        count = (k[..., 0] + EPSILON).floor().clamp(min=1).long()
        return torch.where(k[..., 0] > 0, count, 0)
    return (k[..., 0].detach() + 0.5).floor().long()
