"""Noise for stochastic masks, from one generator only, and its replay under activation checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.shapes import Float

NOISES = ("gumbel", "logistic", "gaussian")


def draw_uniform(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Uniform float64 numbers in [0, 1), in steps of 2⁻⁵³, on the device of ``like``.

    Raises:
        TokenOpsError: a generator that is none, or one of another device.

    >>> draw_uniform((2, 3), torch.zeros(()), torch.Generator().manual_seed(0)).dtype
    torch.float64
    """
    _check_generator(like, generator)
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)


def draw_noise(
    kind: str, like: Float[Tensor, "..."], generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    r"""Standard noise in the shape and on the device of ``like``, always finite.

    .. math:: \mathrm{gumbel} = -\log(-\log u), \quad \mathrm{logistic} = \log\frac{u}{1 - u}, \quad
        \mathrm{gaussian} \sim N(0, 1)

    with u uniform on (0, 1) in steps of 2⁻⁵³, so the upper tails reach past 36. Float64 for float64
    ``like``, else float32. Without a generator it is PyTorch's own, the only one that
    ``torch.compile(fullgraph=True)`` can trace; under ``torch.vmap`` the caller's ``randomness=`` says
    whether examples share a draw.

    Shapes: like (...) -> (...).

    Raises:
        TokenOpsError: an unknown kind; a generator that is none, or one of another device.

    >>> draw_noise("gumbel", torch.zeros(2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    if kind not in NOISES:
        raise TokenOpsError("draw_noise", f"noise as one of {', '.join(NOISES)}", repr(kind))
    dtype = torch.promote_types(like.dtype, torch.float32)
    if kind == "gaussian":
        _check_generator(like, generator)
        return torch.randn(like.shape, generator=generator, dtype=dtype, device=like.device)
    u = draw_uniform(like.shape, like, generator).clamp(min=2**-54)
    if kind == "logistic":
        return (u / (1 - u)).to(dtype).log()
    return -(-u.log()).to(dtype).log()


def _check_generator(like: Tensor, generator: torch.Generator | None) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TokenOpsError("draw_noise", "a torch.Generator or None", repr(generator))
    if generator.device.type != like.device.type:
        raise TokenOpsError("draw_noise", f"a generator on {like.device.type}", generator.device)


class _Rewind:
    """While it is entered, the generator repeats what it gave after the rewind was made."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.start = generator, generator.get_state()
        self.later: list[Tensor] = []

    def __enter__(self) -> None:
        self.later.append(self.generator.get_state())
        self.generator.set_state(self.start)

    def __exit__(self, *error: object) -> None:
        self.generator.set_state(self.later.pop())


def replay(
    generator: torch.Generator | None,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """``context_fn`` for ``torch.utils.checkpoint``: the recomputation draws what the forward drew.

    Checkpointing replays PyTorch's own random numbers and no others, so with a ``generator`` the recomputed
    mask, and the gradient with it, would belong to another draw. Use one call of ``replay`` for as many
    checkpointed segments as share the generator; None is left to checkpointing itself.

    >>> from torch.utils.checkpoint import checkpoint
    >>> g = torch.Generator().manual_seed(0)
    >>> x = torch.ones(3, requires_grad=True)
    >>> y = checkpoint(lambda x: (x * draw_noise("gaussian", x, g)).exp(), x, use_reentrant=False,
    ...                context_fn=replay(g))
    >>> torch.allclose(torch.autograd.grad(y.sum(), x)[0], y * y.log())
    True
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        rewind = contextlib.nullcontext() if generator is None else _Rewind(generator)
        return contextlib.nullcontext(), rewind

    return contexts
