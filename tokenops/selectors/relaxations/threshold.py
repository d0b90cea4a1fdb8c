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
    """A distribution with C(-u) = 1 - C(u) and exponential tails; c is its density, z stands for e^u.

    ``value`` is C(u); ``tail`` gives C(u)/z and c(u)/C(u) as functions of z; ``density`` gives c as a
    function of p = C(u).
    """

    value: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], tuple[Tensor, Tensor]]
    density: Callable[[Tensor], Tensor]


class Cut(NamedTuple):
    """A row around the cut between kept and dropped, half a gap of ``gap`` temperatures wide.

    ``center`` (... 1) lies in it, so x - center is exact where it matters; ``near`` (... n) is
    exp(gap - |x - center|/tau), at most 1; ``top`` and ``rest`` are near times w and 1 - w, 0 at padding.
    """

    center: Tensor
    gap: Tensor
    near: Tensor
    top: Tensor
    rest: Tensor


def cut(x: Tensor, k: Tensor, tau: Tensor, valid: Tensor, rank: int | None) -> Cut:
    """Find the k-th and next score of each row: by Top-K if ``rank`` = floor(k) is known, else by sorting."""
    whole, n = k.floor(), x.shape[-1]
    ranked = x.masked_fill(~valid, -float("inf"))
    if rank is None:
        ranked = ranked.sort(-1, descending=True).values
        out = ranked.gather(-1, whole.long().clamp(0, n - 1))
        last = ranked.gather(-1, (whole.long() - 1).clamp(0, n - 1))
    else:
        ranked = ranked.topk(min(max(rank, 0) + 1, n), -1).values
        out, last = ranked[..., -1:], ranked[..., max(-2, -ranked.shape[-1]), None]
    last = torch.where(k > whole, out, last)
    center, gap = last / 2 + out / 2, ((last / 2 - out / 2) / tau).clamp(max=SATURATED)
    above, tied = (x > out) & valid, (x == out) & valid
    # scores equal to the next one share what is left of k
    share = (k - above.sum(-1, True)) / tied.sum(-1, True).clamp(min=1)
    top = torch.where(tied, share.to(x.dtype), above.to(x.dtype))
    rest = torch.where(tied, (1 - share).to(x.dtype), (valid & ~above).to(x.dtype))
    near = (gap - ((x - center) / tau).abs().clamp(max=SATURATED)).exp()
    return Cut(center, gap, near, near * top, near * rest)


def balance(at: Cut, t: Tensor, cdf: Cdf) -> tuple[Tensor, Tensor]:
    """H and its slope at shift t, A and B both scaled by e^gap."""
    sides, (y, small) = [], (t.exp(), (-at.gap).exp())
    for weight, factor in ((at.top, 1 / y), (at.rest, y)):
        ratio, hazard = cdf.tail(at.near * (small * factor))
        mass = weight * ratio
        total = mass.sum(-1, True)
        sides.append((total * factor, (mass * hazard).sum(-1, True) / total))
    (lack, down), (have, up) = sides
    return have.log() - lack.log(), down + up


def solve(
    x: Tensor, k: Tensor, tau: Tensor, valid: Tensor, cdf: Cdf, rank: int | None = None
) -> tuple[Cut, Tensor]:
    """The cut and the shift t (... 1) such that p = C((x - center)/tau + t) sums to k.

    Rows with k <= 0 or k >= valid hold anything.
    """
    at = cut(x, k, tau, valid, rank)
    t = (at.top.sum(-1, True).log() - at.rest.sum(-1, True).log()) / 2
    for _ in range(5 if x.dtype == torch.float64 else 3):
        h, slope = balance(at, t, cdf)
        t = t - h / slope.clamp(1, 2)
    return at, t


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
    def forward(x: Tensor, k: Tensor, tau: Tensor, valid: Tensor, cdf: Cdf, rank: int | None) -> Tensor:
        """Shapes: x (... n), k and tau (... 1), valid (... n) -> p (... n); rank is floor(k) if known."""
        count = valid.sum(-1, True)
        # products of two shares of k must not underflow: below 1e-18 n in float32, k is rounded up
        least = 8 * torch.finfo(x.dtype).tiny ** 0.5 * x.shape[-1]
        at, t = solve(x, k.clamp(min=least), tau, valid, cdf, rank)
        p = cdf.value((x - at.center) / tau + t)
        p = torch.where(k >= count, 1.0, torch.where(k <= 0, 0.0, p))
        return p.masked_fill(~valid, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the mask, the scores (for the temperature's gradient) and the temperature."""
        x, k, tau, _, cdf, _ = inputs
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
        return dx, mean.to(ctx.k_dtype), dtau, None, None, None
