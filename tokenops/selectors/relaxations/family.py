"""One function for every member of the threshold family, and what can be asked about its threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.registry import register
from tokenops.selectors.relaxations.apply import budgeted, check_number, check_scores, per_row, threshold_topk
from tokenops.selectors.relaxations.balance import balance
from tokenops.selectors.relaxations.capped_simplex import CAPPED_SIMPLEX
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import cut, valid_tokens
from tokenops.selectors.relaxations.entmax import entmax_curve
from tokenops.selectors.relaxations.gaussian import GAUSSIAN
from tokenops.selectors.relaxations.laplace import LAPLACE
from tokenops.selectors.relaxations.noise import NOISES, draw_noise
from tokenops.selectors.relaxations.sigmoid import LOGISTIC
from tokenops.shapes import Bool, Float, Int

METHODS: dict[str, Curve] = {
    "sigmoid": LOGISTIC,
    "laplace": LAPLACE,
    "gaussian": GAUSSIAN,
    "capped_simplex": CAPPED_SIMPLEX,
    "entmax15": entmax_curve(1.5),
}


def curve_of(who: str, method: str | Curve) -> Curve:
    """The curve of a method's name; a curve of one's own is taken as it is."""
    if isinstance(method, Curve):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise TokenOpsError(who, f"method as a Curve or among {', '.join(METHODS)}", repr(method))
    return METHODS[method]


@register("relaxation", paper="arXiv:2510.16598")
def soft_topk(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    method: str | Curve = "sigmoid",
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    segments: Int[Tensor, "..."] | None = None,
    dim: int = -1,
    hard: bool = False,
    noise: str | None = None,
    noise_scale: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    r"""Soft Top-K mask, differentiable in the scores, in k and in the temperature.

    .. math:: p_i = C\!\left(\frac{x_i - \nu}{\tau}\right), \qquad \sum_{i\ \mathrm{valid}} p_i = k

    C is the curve of ``method``. :math:`\tau \to 0` gives the hard Top-K, :math:`\tau \to \infty` the
    constant k/n. Gradients of any order by reverse mode; forward-mode AD (``jvp``) is not offered.

    Args:
        scores: any shape; tokens run along ``dim``. Solved in float32 (float64 for float64).
        k: a *count*, real allowed: a number or a tensor per row. ``k <= 0`` gives zeros, ``k >= valid`` ones.
        ratio: instead of k, the share of the row's valid tokens, in [0, 1]: a number or a tensor per row.
        method: ``"sigmoid"``, ``"laplace"``, ``"gaussian"``, ``"capped_simplex"``, ``"entmax15"`` or a
            :class:`Curve`.
        temperature: in units of the scores, > 0: a number that the dtype solved in can hold, or a tensor per
            row. An entry of a tensor that is not above 0 makes its row NaN.
        mask: like ``scores``, False for padding, which gets 0 and no gradient whatever it holds; a score of
            ``-inf`` counts as padding. NaN makes its own row NaN.
        segments: long, like ``scores``: the segment (image) of each token, -1 for none. Every segment gets
            the budget by itself: a number, or a tensor whose last axis runs over the segments. So does the
            temperature. Reads the number of segments from the device.
        dim: the token axis.
        hard: ones at the round(k) highest scores of each row (of a ratio above 0: rounded down, at least one;
            lowest index wins ties), zeros elsewhere, with the gradient of the soft mask.
        noise: ``"gumbel"``, ``"logistic"`` or ``"gaussian"`` noise added to the scores before all else.
        noise_scale: its scale, in units of the scores: a number >= 0 or a tensor per row.
        generator: where the noise is drawn from; the global generator if None.
        out_dtype: float32 for half-precision scores by default, else the dtype of the scores.

    Shapes: scores, mask, segments (...), k, ratio, temperature (...) without the token axis -> (...).

    Returns:
        The mask, in [0, 1], shaped like ``scores``.

    Raises:
        TokenOpsError: scores no float tensor, mask or segments of another shape or dtype, not exactly one of
            k and ratio, bad k, ratio, temperature, method, noise or dim.

    >>> soft_topk(torch.tensor([2.0, 0.0, -2.0]), 1.5)
    tensor([0.8808, 0.5000, 0.1192])
    >>> soft_topk(torch.tensor([2.0, 0.0, -2.0]), ratio=0.5, method="capped_simplex")
    tensor([1.0000, 0.5000, 0.0000])

    Reference: VisionSelector (arXiv:2510.16598) §3.2, which bisects for :math:`\nu` in the dtype of the
    scores; here one solver serves all curves, also where that one fails (k = 0, k = n, half precision, large
    scores).
    """
    curve = curve_of("soft_topk", method)
    if noise is not None and noise not in NOISES:
        raise TokenOpsError("soft_topk", f"noise among {', '.join(NOISES)}", repr(noise))

    def perturb(x: Tensor) -> Tensor:
        assert noise is not None
        if isinstance(noise_scale, Tensor):
            scale = per_row("soft_topk", "noise_scale", noise_scale, x.shape[:-1], x.dtype)
        else:
            check_number("soft_topk", "noise_scale", noise_scale, 0.0, torch.finfo(x.dtype).max)
            scale = noise_scale
        return x + scale * draw_noise(noise, x, generator)

    return threshold_topk(
        "soft_topk",
        scores,
        k,
        curve=curve,
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        segments=segments,
        dim=dim,
        hard=hard,
        out_dtype=out_dtype,
        perturb=None if noise is None else perturb,
    ).mask


def soft_topk_threshold(
    scores: Float[Tensor, "..."],
    k: float | Tensor | None = None,
    *,
    ratio: float | Tensor | None = None,
    method: str | Curve = "sigmoid",
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""The mask of :func:`soft_topk` and the threshold :math:`\nu` of every row.

    .. math:: p_i = C((x_i - \nu)/\tau)

    With a symmetric curve ``scores > threshold`` is where p > 1/2; with entmax, where p = 1. The threshold is
    float64, without gradient, and inf (-inf) where nothing (everything) is kept. Where an integer k cuts a
    gap wider than the curve, any number inside solves the row.

    Shapes: scores as in :func:`soft_topk`; the threshold has no token axis. Raises as :func:`soft_topk`.

    >>> mask, threshold = soft_topk_threshold(torch.tensor([3.0, 1.0, 0.0]), 1)
    >>> round(threshold.item(), 4), mask
    (2.2442, tensor([0.6804, 0.2237, 0.0959]))
    """
    found = threshold_topk(
        "soft_topk_threshold",
        scores,
        k,
        curve=curve_of("soft_topk_threshold", method),
        ratio=ratio,
        temperature=temperature,
        mask=mask,
        dim=dim,
        out_dtype=out_dtype,
    )
    return found.mask, found.threshold


@torch.no_grad()
def log_balance(
    scores: Float[Tensor, "..."],
    k: float | Tensor,
    threshold: Float[Tensor, "..."],
    *,
    method: str | Curve = "sigmoid",
    temperature: float | Tensor = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    dim: int = -1,
) -> Float[Tensor, "..."]:
    r"""How far a threshold is from solving its row: the certificate of :func:`soft_topk_threshold`.

    .. math:: H = \log \sum_i (1 - w_i) p_i - \log \sum_i w_i (1 - p_i), \qquad p_i = C((x_i - \nu)/\tau)

    w is the hard Top-K mask (a fractional k gives its fraction to the next score, ties share). H is 0 exactly
    where the mask sums to k. For ``"sigmoid"`` and ``"laplace"`` its slope in :math:`-\nu/\tau` is in [1, 2]
    for any scores, so the true threshold lies between :math:`\nu + \tau H/2` and :math:`\nu + \tau H`.
    Computed in float64; 0 in rows that keep nothing or everything.

    Shapes: scores as in :func:`soft_topk`, k, threshold and the result per row. Raises as :func:`soft_topk`.

    >>> x = torch.tensor([3.0, 1.0, 0.0])
    >>> _, threshold = soft_topk_threshold(x, 1)
    >>> bool(log_balance(x, 1, threshold).abs() < 1e-6), log_balance(x, 1, threshold - 0.1) > 0.1
    (True, tensor(True))
    """
    who = "log_balance"
    curve = curve_of(who, method)
    check_scores(who, scores, mask, dim)
    x = scores.double().movedim(dim, -1)
    mask = None if mask is None else mask.movedim(dim, -1)
    x, k, tau = budgeted(who, x, k, None, temperature, mask)
    if not isinstance(threshold, Tensor) or threshold.shape != x.shape[:-1]:
        got = tuple(threshold.shape) if isinstance(threshold, Tensor) else type(threshold).__name__
        raise TokenOpsError(who, f"threshold per row {tuple(x.shape[:-1])}", got)
    if not x.shape[-1]:
        return threshold.double() * 0
    valid = valid_tokens(x, mask)
    count = torch.as_tensor(k, dtype=torch.float64, device=x.device).expand(*x.shape[:-1], 1)
    at = cut(x.masked_fill(~valid, -math.inf), count, tau)
    t = (at.center - threshold[..., None].double()) / tau
    lack, have, _, _ = balance(at, t, curve)
    h = torch.where((lack == 0) & (have == 0), 0.0, have.log() - lack.log())
    return torch.where((count <= 0) | (count >= valid.sum(-1, True)), 0.0, h)[..., 0]
