"""What every kernel promises: the outputs and gradients of its plain reference."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tokenops.testing.drawing import Draw, assert_close, hold

Case = Callable[[Draw], tuple[tuple[Any, ...], dict[str, Any]]]


def reference_of(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the same name in ``<kernel's package>.reference``."""
    return getattr(import_module(f"{kernel.__module__}.reference"), kernel.__name__)


def _leaf(x: Tensor) -> Tensor:
    """A copy that lies in memory as ``x`` does, with all that lies around it."""
    size = x.untyped_storage().nbytes() // x.element_size()
    memory = x.detach().as_strided((size,), (1,), 0).clone()
    return memory.as_strided(x.shape, x.stride(), x.storage_offset()).requires_grad_()


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[list[Tensor | None]]:
    """Outputs, and the gradients of every floating input for fixed random output gradients."""
    leaves = [_leaf(a) if _is_float(a) else a for a in args]
    result = function(*leaves, **kwargs)
    outputs = list(result) if isinstance(result, tuple) else [result]
    wanted = [leaf for leaf in leaves if _is_float(leaf)]
    sources = [out for out in outputs if out.requires_grad]
    gradients: list[Tensor | None] = [None] * len(wanted)
    if sources and wanted:
        g = torch.Generator().manual_seed(0)
        incoming = [torch.randn(out.shape, generator=g).to(out.dtype) for out in sources]
        gradients = list(torch.autograd.grad(sources, wanted, incoming, allow_unused=True))
    return [[out.detach() for out in outputs], gradients]


def _rounding(expected: Tensor, terms: float) -> float:
    """What another order of summation may change, for terms of that size or as large as the result."""
    if not expected.is_floating_point() or not expected.numel():
        return 0.0
    largest = float(expected.nan_to_num(0, 0, 0).abs().max())
    return 4 * torch.finfo(expected.dtype).eps * max(terms, largest)


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def matches_reference(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    draw: Draw,
    *,
    case: Case,
    atol: float,
    terms: float = 0,
) -> None:
    """Same values, dtypes and gradients, for inputs with the strides that the case gives them."""
    args, kwargs = case(draw)
    for got, expected in zip(_run(kernel, args, kwargs), _run(reference, args, kwargs), strict=True):
        assert len(got) == len(expected), "kernel and reference must return alike"
        for a, b in zip(got, expected, strict=True):
            if a is None or b is None:
                assert all(t is None or not t.any() for t in (a, b)), "one has a gradient, the other none"
            else:
                assert_close(a, b, max(atol, _rounding(b, terms)), exact_dtype=True)


def check_kernel(
    kernel: Callable[..., Any],
    case: Case,
    *,
    reference: Callable[..., Any] | None = None,
    atol: float = 1e-6,
    terms: float = 0,
) -> None:
    """Hold a kernel to its reference on the arguments that ``case(draw)`` makes.

    Args:
        kernel: the function, of tensors and other arguments.
        case: arguments and options to call it with; the strides of tensors are kept.
        reference: the plain function; by default the one of this name in ``<package>.reference``.
        atol: absolute tolerance, or four roundings of the largest result where that is more.
        terms: size of terms that cancel in the result: four roundings of them are allowed as well.

    Raises:
        AssertionError: an output, dtype or gradient differs.
        TokenOpsError: Hypothesis is not installed.

    >>> def double(x):
    ...     return x + x
    >>> check_kernel(double, lambda draw: ((draw.normal(2, 3),), {}), reference=lambda x: 2 * x)
    """
    hold(matches_reference, kernel, reference or reference_of(kernel), case=case, atol=atol, terms=terms)
