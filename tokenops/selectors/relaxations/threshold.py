r"""One engine for the masks :math:`p_i = C((x_i - \nu)/\tau)` with :math:`\sum_i p_i = k`.

The threshold is the root of the *log-balance* :math:`H = \log B - \log A`, where :math:`A` is the mass the
k largest scores still lack and :math:`B` the mass the others already have:

.. math:: A = \sum_i w_i (1 - p_i), \qquad B = \sum_i (1 - w_i) p_i, \qquad 1 \le H' \le 2,

:math:`w` being 1 on the :math:`\lfloor k \rfloor` largest scores and the fraction of k on the next. Both are
sums of positive terms and the slope is bounded, so a fixed number of Newton steps reaches rounding error for
any scores: no bracket, no branch on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SATURATED = 1e4
"""Distance from the threshold, in temperatures, beyond which every member is exactly 0 or 1."""


class Cdf(NamedTuple):
    """A symmetric distribution, C(-u) = 1 - C(u), with c its density.

    ``value`` is C(u), ``log`` log C(u), ``hazard`` c(u)/C(u) and ``density`` c as a function of p = C(u).
    """

    value: Callable[[Tensor], Tensor]
    log: Callable[[Tensor], Tensor]
    hazard: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]


def balance(d: Tensor, t: Tensor, log_top: Tensor, log_rest: Tensor, cdf: Cdf) -> tuple[Tensor, Tensor]:
    """H and its slope in t, for sorted distances ``d`` (... n) and the logs of w and 1 - w."""
    u = d + t
    lack, have = log_top + cdf.log(-u), log_rest + cdf.log(u)
    slope = (lack.softmax(-1) * cdf.hazard(-u)).sum(-1, True)
    slope = slope + (have.softmax(-1) * cdf.hazard(u)).sum(-1, True)
    return have.logsumexp(-1, True) - lack.logsumexp(-1, True), slope


def solve(x: Tensor, k: Tensor, tau: Tensor, valid: Tensor, cdf: Cdf) -> tuple[Tensor, Tensor, Tensor]:
    """Centre c and shift t, each (... 1), such that p = C((x - c)/tau + t) sums to k; and H at t.

    c lies at the cut between kept and dropped, so x - c is exact where it matters. Rows with k <= 0 or
    k >= valid hold anything.
    """
    top = x.masked_fill(~valid, -float("inf")).sort(-1, descending=True).values
    rank = torch.arange(x.shape[-1], device=x.device)
    whole = k.floor()
    part = k - whole
    w = torch.where(rank < whole, 1.0, torch.where(rank == whole, part, 0.0))
    w = torch.where(rank < valid.sum(-1, True), w, torch.nan)
    log_top = w.log().nan_to_num(nan=-float("inf"), neginf=-float("inf")).to(x.dtype)
    log_rest = (1 - w).log().nan_to_num(nan=-float("inf"), neginf=-float("inf")).to(x.dtype)
    first_out = top.gather(-1, whole.long().clamp(0, x.shape[-1] - 1))
    last_in = top.gather(-1, (whole.long() - 1).clamp(0, x.shape[-1] - 1))
    c = torch.where(part > 0, first_out, last_in / 2 + first_out / 2)
    d = ((top - c) / tau).clamp(-SATURATED, SATURATED)
    t = ((log_top - d.abs()).logsumexp(-1, True) - (log_rest - d.abs()).logsumexp(-1, True)) / 2
    for _ in range(5 if x.dtype == torch.float64 else 4):
        h, slope = balance(d, t, log_top, log_rest, cdf)
        t = t - h / slope.clamp(1, 2)
    return c, t, balance(d, t, log_top, log_rest, cdf)[0]


class Threshold(torch.autograd.Function):
    r"""The mask with its exact derivatives, from the mask alone.

    With :math:`v = c(u)/\tau`, :math:`r = v/\sum v` and g the incoming gradient:

    .. math::
        \partial x = v (g - \langle r, g\rangle), \quad \partial k = \langle r, g\rangle, \quad
        \partial\tau = -\tfrac1\tau \sum_i v_i x_i (g_i - \langle r, g\rangle)

    p is saved as an output, so differentiating the backward pass is right as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, k: Tensor, tau: Tensor, valid: Tensor, cdf: Cdf) -> Tensor:
        """Shapes: x (... n), k and tau (... 1), valid (... n) -> p (... n)."""
        count = valid.sum(-1, True)
        c, t, _ = solve(x, k.minimum(count), tau, valid, cdf)
        p = cdf.value((x - c) / tau + t)
        p = torch.where(k >= count, 1.0, torch.where(k <= 0, 0.0, p))
        return p.masked_fill(~valid, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the mask, the scores (for the temperature's gradient) and the temperature."""
        x, k, tau, _, cdf = inputs
        ctx.cdf, ctx.k_dtype = cdf, k.dtype
        ctx.save_for_backward(x, tau, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, k and tau, themselves differentiable."""
        (g,), (x, tau, p) = grads, ctx.saved_tensors
        v = ctx.cdf.density(p) / tau
        r = v / v.sum(-1, True).clamp(min=torch.finfo(v.dtype).tiny)
        mean = (r * g).sum(-1, True)
        dx = v * (g - mean)
        dtau = None
        if ctx.needs_input_grad[2]:
            dtau = -(dx * (x - (r * x).sum(-1, True))).sum(-1, True) / tau
        return dx, mean.to(ctx.k_dtype), dtau, None, None
