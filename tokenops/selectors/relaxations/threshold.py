"""The mask as one differentiable operation: any curve, one solver, one backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenops.eager import may_look, transformed
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.cut import Number, finite, valid_tokens
from tokenops.selectors.relaxations.easy import easy_mask
from tokenops.selectors.relaxations.solver import SATURATED, solve, spread_rest


def solve_mask(
    x: Tensor, k: Number, tau: Number, mask: Tensor | None, curve: Curve
) -> tuple[Tensor, Tensor, Tensor]:
    """The mask (... n), 0 at padding, and (... 1) centre and shift; shapes as in :class:`Threshold`."""
    padded = mask is not None
    x = x if mask is None else x.masked_fill(~mask, -math.inf)
    return easy_mask(x, k, tau, padded, curve) or _ranked_mask(x, k, tau, padded, curve)


def _ranked_mask(
    x: Tensor, k: Number, tau: Number, padded: bool, curve: Curve
) -> tuple[Tensor, Tensor, Tensor]:
    """The mask by ranking, for all rows there are."""
    n = x.shape[-1]
    full = not padded and may_look(x) and x.numel() > 0 and float(x.amin()) > -math.inf
    valid = None if full else valid_tokens(x)
    same = None if isinstance(k, Tensor) else k
    k = k if isinstance(k, Tensor) else x.new_full((*x.shape[:-1], 1), k, dtype=torch.float64)
    # products of two shares of k must not underflow: below 1e-18 n in float32, k is rounded up
    least = 8 * torch.finfo(x.dtype).tiny ** 0.5 * n
    at, t = solve(x, k.clamp(min=least), tau, curve, None if same is None else max(same, least))
    u = (finite(x) - at.center) / tau
    if curve.balanced:
        p = curve.value(u + t)
    else:
        p = curve.value(u.clamp(-SATURATED, SATURATED) + t)
        p = p if valid is None else p.masked_fill(~valid, 0.0)
    v = curve.density(p)
    # t comes from sums of small terms: more exact than what is missing in a sum of rounded shares
    slope = v.sum(-1, True)
    slope = torch.where(slope == 0, math.inf, slope)
    p = spread_rest(p, k, v, slope, t, p.sum(-1, True, dtype=torch.float64))[0].clamp_(0, 1)
    # below the cut of a row without enough tokens lies padding
    none, every = k <= 0, (k >= n) | (at.center == -math.inf)
    p = torch.where(every, 1.0, torch.where(none, 0.0, p))
    t = torch.where(every, math.inf, torch.where(none, -math.inf, t))
    return p if valid is None else p.masked_fill(~valid, 0.0), at.center, t


def threshold_mask(
    x: Tensor, k: Number, tau: Number, mask: Tensor | None, curve: Curve
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`Threshold` by the shortest way that serves the tensors; arguments and results as there."""
    arguments = x, k, tau, mask, curve
    if not may_look(x) or transformed():
        return Threshold.apply(*arguments)
    asked = any(isinstance(v, Tensor) and v.requires_grad for v in (x, k, tau))
    if asked and torch.is_grad_enabled():
        return Eager.apply(*arguments)
    with torch.no_grad():
        return solve_mask(*arguments)


class Threshold(torch.autograd.Function):
    r"""The mask with its exact derivatives, from the mask alone.

    With :math:`v = c(u)/\tau`, :math:`r = v/\sum v` and g the incoming gradient:

    .. math::
        \partial x = v (g - \langle r, g\rangle), \quad \partial k = \langle r, g\rangle, \quad
        \partial\tau = -\tfrac1\tau \sum_i v_i x_i (g_i - \langle r, g\rangle)

    p is saved as an output, so differentiating the backward pass is right as well.
    """

    @staticmethod
    def forward(
        x: Tensor, k: Number, tau: Number, mask: Tensor | None, curve: Curve
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: x, mask (... n); k (float64), tau numbers or (... 1) -> p (... n), centre, shift (... 1).

        The threshold is centre - shift * tau: for reports, without gradient.
        """
        return solve_mask(x, k, tau, mask, curve)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the mask, and scores and temperature where the temperature is a tensor."""
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, k and tau, themselves differentiable."""
        return _gradients(ctx, grads[0], look=False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, int, int]]:
        """One more batch axis in front; the operation takes any number of them."""
        *tensors, curve = inputs

        def in_front(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            if dim is None:
                return value.expand(info.batch_size, *value.shape)
            return value.movedim(dim, 0)

        moved = [in_front(v, d) for v, d in zip(tensors, in_dims, strict=False)]
        return Threshold.apply(*moved, curve), (0, 0, 0)


class Eager(torch.autograd.Function):
    """:class:`Threshold` for eager CPU tensors outside of function transforms, at half the cost."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Threshold`."""
        ctx.set_materialize_grads(False)
        output = solve_mask(*arguments)
        _keep(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """As :class:`Threshold`."""
        if grads[0] is None:
            return (None,) * 5
        return _gradients(ctx, grads[0], look=_has_memory(grads[0]))


def _has_memory(g: Tensor) -> bool:
    """Whether values can be looked at: a batch of gradients in one tensor has none of its own."""
    try:
        g.data_ptr()
    except RuntimeError:
        return False
    return True


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward pass needs."""
    x, k, tau, _, curve = inputs
    p, *where = output
    ctx.mark_non_differentiable(*where)
    ctx.curve, ctx.k_dtype = curve, k.dtype if isinstance(k, Tensor) else None
    ctx.tau = None if isinstance(tau, Tensor) else tau
    ctx.save_for_backward(p, *((x, tau) if isinstance(tau, Tensor) else ()))


def _gradients(ctx: Any, g: Tensor, look: bool) -> tuple[Tensor | None, ...]:
    """From the incoming gradient; ``look`` says that values may be looked at."""
    p, *rest = ctx.saved_tensors
    v = ctx.curve.density(p)
    total = v.sum(-1, True)
    weighed = v * g
    mean = weighed.sum(-1, True) / total
    safe = look and math.isfinite(float(mean.detach().sum()))
    if not safe:
        # what is padding, or 0 or 1 for good, may hand back NaN or infinity
        g, total = torch.where(v > 0, g, 0.0), total.clamp(min=torch.finfo(v.dtype).tiny)
        mean = (v * g).sum(-1, True) / total
    # the difference first: where gradients are nearly alike, a difference of products would be rounding
    if look and not torch.is_grad_enabled():
        dx, dtau = torch.sub(g, mean, out=weighed).mul_(v), None
    else:
        dx, dtau = v * (g - mean), None
    # the mean is NaN in a row with a NaN
    dx = dx if safe else torch.where(v == 0, 0.0, dx)
    if rest:
        x, tau = rest
        dx = dx / tau
        if ctx.needs_input_grad[2]:
            x = torch.where(v > 0, x, 0.0)
            dtau = -(dx * (x - (v / total * x).sum(-1, True))).sum(-1, True) / tau
    elif ctx.tau != 1:
        dx = dx / ctx.tau
    dk = None if ctx.k_dtype is None else mean.to(ctx.k_dtype)
    return dx, dk, dtau, None, None
