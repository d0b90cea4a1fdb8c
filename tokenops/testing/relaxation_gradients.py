"""What every relaxation promises about derivatives, compilation and batching rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokenops.selectors.relaxations.family import METHODS
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, assert_close

# the largest density of each member's curve, by the name of its function; 1 for what is not listed
STEEPNESS = {f"{name}_topk": curve.steepness for name, curve in METHODS.items()} | {"soft_topk": 0.25}


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
    assert (total <= 1e-5 * scale + 1e-6).all(), "gradients must sum to 0 over a row"


def near_a_kink(function: Callable[..., Tensor], *inputs: Tensor, hair: float = 1e-5) -> bool:
    """Whether an entry of the mask becomes, or ceases to be, 0 or 1 as one of the inputs moves by a hair.

    >>> x = torch.tensor([0.25, 1.0])
    >>> near_a_kink(lambda x: x.clamp(0, 1), x), near_a_kink(lambda x: x.clamp(0, 1), x / 2)
    (True, False)
    """

    def whole(values: list[Tensor]) -> Tensor:
        p = function(*values)
        return (p == 0) | (p == 1)

    still = [v.detach() for v in inputs]
    here = whole(still)
    for i, value in enumerate(still):
        for step in torch.cat([torch.eye(value.numel()), -torch.eye(value.numel())]):
            moved = value + hair * step.view(value.shape)
            if not torch.equal(whole([*still[:i], moved, *still[i + 1 :]]), here):
                return True
    return False


def numerical(relax: Any, draw: Draw) -> None:
    """First and second derivatives in scores, k and temperature agree with finite differences."""
    n = draw.integer(3, 5)
    x = draw.normal(1, n, dtype=torch.float64).requires_grad_()
    whole = draw.integer(1, n - 2)
    mask = torch.ones(1, n, dtype=torch.bool)
    mask[0, draw.integer(0, n - 1)] = draw.choice(False, True)
    tau = torch.tensor([draw.choice(1.0, 0.5, 2.0)], dtype=torch.float64, requires_grad=True)
    # where an integer k cuts a gap, curves of bounded support have no derivative in k
    part = torch.tensor([-draw.number(0.3, 0.6)], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, tau: Tensor, part: Tensor) -> Tensor:
        knobs = {"temperature": tau} if "temperature" in needs(relax) else {}
        return relax(x, whole + part, mask=mask, **knobs)

    draw.assume(not near_a_kink(function, x, tau, part))
    assert torch.autograd.gradcheck(function, (x, tau, part), atol=1e-5)
    assert torch.autograd.gradgradcheck(function, (x, tau, part), atol=1e-4, fast_mode=True)


def k_derivative_sums_to_one(relax: Any, draw: Draw) -> None:
    """Σ_i dp_i/dk = 1."""
    n = draw.integer(2, 24)
    k = torch.tensor(draw.integer(1, n - 1) - draw.number(0.1, 0.9), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(relax(draw.normal(1, n, dtype=torch.float64), k).sum(), k)
    assert_close(grad, torch.tensor(1.0), 1e-5)


def jacobian_is_a_covariance(relax: Any, draw: Draw) -> None:
    """dp/dx is symmetric, positive semi-definite, has zero row sums and a norm of at most steepness/τ."""
    n, tau = draw.integer(2, 12), draw.choice(1.0, 0.25, 4.0)
    knobs = {"temperature": tau} if "temperature" in needs(relax) else {}
    bound = STEEPNESS.get(getattr(relax, "__name__", ""), 1.0) / (tau if knobs else 1.0)
    x, k = draw.normal(n, dtype=torch.float64), draw.integer(1, n - 1) - draw.choice(0.0, 0.5)
    jacobian = _jacobian(lambda x, k: relax(x, k, **knobs), x, k)
    assert_close(jacobian, jacobian.T, 1e-9)
    assert_close(jacobian.sum(-1), torch.zeros(n), 1e-9)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert eigenvalues.min() >= -1e-9, "dp/dx must be positive semi-definite"
    assert eigenvalues.max() <= bound + 1e-9, f"dp/dx must have a norm of at most {bound}"


def ratio_and_temperature_slopes(relax: Any, draw: Draw) -> None:
    """A ratio and a shared temperature get the gradient that finite differences give."""
    if not {"ratio", "temperature"} <= set(needs(relax)):
        return
    n = draw.integer(3, 6)
    x, mask = draw.normal(2, n, dtype=torch.float64), torch.ones(2, n, dtype=torch.bool)
    mask[0, 0] = False
    ratio = torch.tensor(draw.number(0.4, 0.6) - 0.01, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(draw.choice(1.0, 3.0), dtype=torch.float64, requires_grad=True)

    def function(ratio: Tensor, tau: Tensor) -> Tensor:
        return relax(x, ratio=ratio, temperature=tau, mask=mask)

    assert torch.autograd.gradcheck(function, (ratio, tau), atol=1e-5)


def vmaps(relax: Any, draw: Draw) -> None:
    """torch.vmap over rows equals the batch: of scores and k or either, masked, nested, with gradients."""
    b, n = draw.integer(1, 3), draw.integer(2, 9)
    x, k, mask = draw.dyadic(b, n), torch.arange(b) % n + 0.5, draw.mask(b, n)
    assert_close(torch.vmap(relax)(x, k), relax(x, k), 1e-6)
    assert_close(torch.vmap(relax, (0, None))(x, k[0]), relax(x, k[:1].expand(b)), 1e-6)
    assert_close(torch.vmap(relax, (None, 0))(x[0], k), relax(x[:1].expand(b, n), k), 1e-6)
    assert_close(torch.vmap(relax, (0, None))(x, 1), relax(x, 1), 1e-6)
    masked = torch.vmap(lambda x, k, mask: relax(x, k, mask=mask))
    assert_close(masked(x, k, mask), relax(x, k, mask=mask), 1e-6)
    twice = torch.vmap(torch.vmap(relax, (0, 0)), (-1, None))(torch.stack([x, 2 * x], -1), k)
    assert_close(twice, torch.stack([relax(x, k), relax(2 * x, k)]), 1e-6)
    weight = draw.normal(n)
    slope = torch.func.grad(lambda x, k: (relax(x, k) * weight).sum())
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((relax(leaf, k) * weight).sum(), leaf)
    assert_close(torch.vmap(slope)(x, k), expected, 1e-6)
    assert_close(slope(x[0], k[0]), expected[0], 1e-6)


def under_autocast(relax: Any, draw: Draw) -> None:
    """Autocast changes neither the mask nor its gradient."""
    n = draw.integer(2, 24)
    x, k, weight = draw.normal(2, n).requires_grad_(), draw.integer(1, n - 1), draw.normal(2, n)
    plain = relax(x, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = relax(x, k)
    assert cast.dtype == torch.float32, "float32 in, float32 out"
    assert_close(cast, plain, 0)
    first, again = (torch.autograd.grad((p * weight).sum(), x)[0] for p in (plain, cast))
    assert_close(again, first, 0)


def recomputes(relax: Any, draw: Draw) -> None:
    """Activation checkpointing gives the same gradient."""
    n = draw.integer(2, 24)
    x, k, weight = draw.normal(2, n).requires_grad_(), draw.integer(1, n - 1), draw.normal(2, n)
    first, again = (
        torch.autograd.grad((p.square() * weight).sum(), x)[0]
        for p in (relax(x, k), checkpoint(relax, x, k, use_reentrant=False))
    )
    assert torch.equal(first, again)


def compiles(relax: Any, backend: str = "aot_eager", *, every_way: bool = False) -> None:
    """torch.compile(fullgraph=True) gives eager values and gradients; ``every_way`` of giving the budget."""
    x, k = torch.linspace(-3, 3, 20).view(2, 10).sin(), torch.tensor([2.0, 6.5])
    mask = torch.arange(20).view(2, 10) % 7 != 3
    ways: list[dict[str, Any]] = [{"k": k, "mask": mask}, {"k": 3}] if every_way else [{"k": k, "mask": mask}]
    if every_way and {"ratio", "temperature", "hard"} <= set(needs(relax)):
        ways.append({"ratio": 0.3, "temperature": torch.tensor([0.5, 2.0]), "hard": True, "mask": mask})
    torch.compiler.reset()  # what other tests compiled counts towards the limit of recompilations
    for way in ways:
        results = []
        for function in (relax, torch.compile(relax, fullgraph=True, backend=backend)):
            leaf = x.clone().requires_grad_()
            p = function(leaf, **way)
            (p * torch.arange(10)).sum().backward()
            results.append((p.detach(), leaf.grad))
        (eager, eager_grad), (compiled, compiled_grad) = results
        assert_close(compiled, eager, 1e-6)
        assert_close(compiled_grad, eager_grad, 5e-6)


LAWS: tuple[Law, ...] = (
    finite_and_balanced,
    numerical,
    k_derivative_sums_to_one,
    ratio_and_temperature_slopes,
    jacobian_is_a_covariance,
    vmaps,
    under_autocast,
    recomputes,
)
