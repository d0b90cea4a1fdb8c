"""The same difficult inputs for other code and for ours: what comes out; see ``relaxations.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from relaxation_reference import bisection_topk
from torch import Tensor
from torch.autograd import gradgradcheck

from tokenops.selectors import relaxations

Operator = Callable[[Tensor], Tensor]
Probe = Callable[[Operator], str]


def sum_of(x: Tensor, k: int) -> Probe:
    """How far the sums of a batch are from k."""
    return lambda f: f"Σ off by {float((f(x).double().sum(-1) - k).abs().max()):.2g}"


def values(x: Tensor, known: Tensor | None = None) -> Probe:
    """Whether every value is a number, and if ``known`` is given the right one."""

    def probe(f: Operator) -> str:
        p = f(x)
        if known is not None and not p.isnan().any():
            return "right" if torch.allclose(p, known, atol=1e-6) else "wrong"
        return f"{int(p.isnan().any(-1).sum())} of {len(p)} rows NaN" if p.isnan().any() else "finite"

    return probe


def gradient(x: Tensor) -> Probe:
    """Whether the gradient of a weighted sum is finite."""

    def probe(f: Operator) -> str:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad((f(leaf) * torch.arange(x.shape[-1])).sum(), leaf)
        return "finite" if grad.isfinite().all() else "NaN gradient"

    return probe


def second_derivative(x: Tensor) -> Probe:
    """Whether the second derivative agrees with finite differences."""
    leaf = x.double().requires_grad_()
    return lambda f: "right" if gradgradcheck(f, leaf, raise_exception=False) else "wrong"


def vmapped(x: Tensor) -> Probe:
    """Whether ``torch.vmap`` over an axis works."""
    return lambda f: "works" if torch.vmap(f)(torch.stack([x, x])).shape[0] == 2 else "wrong"


def outcome(probe: Probe, f: Operator) -> str:
    """What the probe says, or the error in its place."""
    try:
        return probe(f)
    except Exception as error:
        return type(error).__name__


def failures() -> list[dict[str, Any]]:
    """A row for every operator and input; those of entmax only if it is installed."""
    g = torch.Generator().manual_seed(0)
    many, some = torch.randn(8, 16384, generator=g), torch.randn(8, 4096, generator=g)
    four, first = torch.tensor([[0.3, 0.1, -3.0, -5.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    padded = torch.tensor([[1.0, 2.0, 3.0, -math.inf]])
    broken = torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    gap = torch.tensor([[300.0, 300.0, 0.0, 0.0]])
    huge = torch.tensor([[1e30, 2e30, -1e30]])

    def bisection(k: int) -> tuple[str, Operator, Operator]:
        def ours(x: Tensor) -> Tensor:
            return relaxations.sigmoid_topk(x, k)

        return "64 bisections", lambda x: bisection_topk(x, k), ours

    cases: list[tuple[tuple[str, Operator, Operator], str, Probe]] = [
        (bisection(4915), "bf16, n = 16384, k = 4915", sum_of(many.bfloat16(), 4915)),
        (bisection(4915), "scores + 8192", sum_of(many + 8192, 4915)),
        (bisection(4), "k = n = 4", sum_of(four, 4)),
        (bisection(2), "a score of -inf", values(padded)),
        (bisection(2), "a gap of 300 temperatures at the cut", gradient(gap)),
        (bisection(2), "second derivative", second_derivative(four)),
        (bisection(2), "vmap", vmapped(four)),
    ]
    try:
        import entmax
    except ImportError:
        entmax = None
    if entmax is not None:
        sparse = ("sparsemax", entmax.sparsemax, relaxations.sparsemax)
        smooth = ("entmax15", entmax.entmax15, relaxations.entmax15)
        bisect = ("entmax_bisect", entmax.entmax_bisect, relaxations.entmax15)

        def budget(k: int) -> tuple[str, Operator, Operator]:
            def ours(x: Tensor) -> Tensor:
                return relaxations.capped_simplex_topk(x, k)

            return "budget_bisect", lambda x: entmax.budget_bisect(x, k), ours

        cases += [
            (sparse, "one row with NaN, one without", values(broken)),
            (smooth, "bf16, n = 4096", sum_of(some.bfloat16(), 1)),
            (smooth, "second derivative, zeros in the mask", second_derivative(four)),
            (smooth, "vmap", vmapped(four)),
            (bisect, "scores of 1e30", values(huge, first)),
            (budget(409), "scores + 8192, n = 4096, k = 409", sum_of(some + 8192, 409)),
            (budget(409), "bf16, n = 4096, k = 409", sum_of(some.bfloat16(), 409)),
            (budget(2), "a score of -inf", values(padded)),
        ]
    return [
        {"what": name, "input": what, "theirs": outcome(probe, theirs), "ours": outcome(probe, ours)}
        for (name, theirs, ours), what, probe in cases
    ]
