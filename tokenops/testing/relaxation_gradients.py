"""What every relaxation promises about derivatives, compilation and batching rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, assert_close


def _jacobian(relax: Any, x: Tensor, k: float) -> Tensor:
    result = torch.autograd.functional.jacobian(lambda x: relax(x, k), x, vectorize=False)
    return result if isinstance(result, Tensor) else result[0]


def finite_and_balanced(relax: Any, draw: Draw) -> None:
    """Gradients are finite at every scale, sum to 0 over a row, and are the same bits each time."""
    n = draw.integer(2, 24)
    x = (draw.distinct(2, n) * draw.choice(1.0, 1e2, 1e4)).requires_grad_()
    k = draw.integer(1, n - 1) + draw.choice(0.0, 0.5)
    weight = draw.normal(2, n)
    first, again = (torch.autograd.grad((relax(x, k) * weight).sum(), x)[0] for _ in range(2))
    assert first.isfinite().all(), "gradients must be finite"
    assert torch.equal(first, again), "two backward passes must agree"
    total, scale = first.double().sum(-1).abs(), first.double().abs().sum(-1)
    assert (total <= 1e-5 * scale + 1e-7).all(), "gradients must sum to 0 over a row"


def numerical(relax: Any, draw: Draw) -> None:
    """First and second derivatives in scores, k and temperature agree with finite differences."""
    n = draw.integer(3, 6)
    x = draw.normal(2, n, dtype=torch.float64).requires_grad_()
    whole = draw.integer(1, n - 2)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[0, draw.integer(0, n - 1)] = False
    tau = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    # where an integer k cuts a gap, curves of bounded support have no derivative in k
    part = torch.tensor([-0.3, -0.6], dtype=torch.float64, requires_grad=True)
    for arguments in ((x, tau), (x, tau, part)):

        def function(x: Tensor, tau: Tensor, part: Tensor | float = 0.0) -> Tensor:
            knobs = {"temperature": tau} if "temperature" in needs(relax) else {}
            return relax(x, whole + part, mask=mask, **knobs)

        assert torch.autograd.gradcheck(function, arguments, atol=1e-5)
        assert torch.autograd.gradgradcheck(function, arguments, atol=1e-4)


def k_derivative_sums_to_one(relax: Any, draw: Draw) -> None:
    """Σ_i dp_i/dk = 1."""
    n = draw.integer(2, 24)
    k = torch.tensor(draw.integer(1, n - 1) - draw.number(0.1, 0.9), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(relax(draw.normal(1, n, dtype=torch.float64), k).sum(), k)
    assert_close(grad, torch.tensor(1.0), 1e-5)


def jacobian_is_a_covariance(relax: Any, draw: Draw) -> None:
    """dp/dx is symmetric, positive semi-definite, has zero row sums and a norm of at most 1."""
    n = draw.integer(2, 12)
    jacobian = _jacobian(relax, draw.normal(n, dtype=torch.float64), draw.integer(1, n - 1))
    assert_close(jacobian, jacobian.T, 1e-9)
    assert_close(jacobian.sum(-1), torch.zeros(n), 1e-9)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert eigenvalues.min() >= -1e-9, "dp/dx must be positive semi-definite"
    assert eigenvalues.max() <= 1 + 1e-9, "dp/dx must not amplify"


def vmaps(relax: Any, draw: Draw) -> None:
    """torch.vmap over rows, scores and k, equals the batch."""
    b, n = draw.integer(1, 3), draw.integer(2, 9)
    x, k = draw.dyadic(b, n), torch.arange(b) % n + 0.5
    assert_close(torch.vmap(relax)(x, k), relax(x, k), 1e-6)


def compiles(relax: Any) -> None:
    """torch.compile(fullgraph=True) gives the eager values and gradients."""
    x, k = torch.linspace(-3, 3, 20).view(2, 10).sin(), torch.tensor([2.0, 6.5])
    mask = torch.arange(20).view(2, 10) % 7 != 3
    results = []
    for function in (relax, torch.compile(relax, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        p = function(leaf, k, mask=mask)
        (p * torch.arange(10)).sum().backward()
        results.append((p.detach(), leaf.grad))
    (eager, eager_grad), (compiled, compiled_grad) = results
    assert_close(compiled, eager, 1e-6)
    assert_close(compiled_grad, eager_grad, 1e-6)


LAWS: tuple[Law, ...] = (
    finite_and_balanced,
    numerical,
    k_derivative_sums_to_one,
    jacobian_is_a_covariance,
    vmaps,
)
