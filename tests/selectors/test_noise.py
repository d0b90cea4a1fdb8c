"""Noise: its distribution, its one source, and its replay under activation checkpointing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import noise as module
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.relaxations.noise import NOISES, draw_noise, draw_uniform, replay
from tokenops.selectors.relaxations.perturbed import perturbed_topk
from tokenops.selectors.relaxations.systematic import systematic_topk
from tokenops.testing import inclusion
from tokenops.testing.samplers import seeded


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distribution(kind: str, dtype: torch.dtype) -> None:
    n = 1_000_000
    z = draw_noise(kind, torch.zeros(n, dtype=dtype), seeded(0))
    cdf, _ = inclusion.NOISES[kind]
    steps = torch.arange(n, dtype=torch.float64) / n
    # Kolmogorov and Smirnov: exceeded by chance once in ten million
    assert (cdf(z.double().sort().values) - steps).abs().max() * n**0.5 < 3.0
    tail = torch.sort(z, descending=True).values[:100]
    assert len(tail.unique()) == 100, "large values must not be on a coarse grid"


@pytest.mark.parametrize("kind", NOISES)
def test_shape_and_dtype(kind: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        z = draw_noise(kind, torch.zeros(2, 0, 3, dtype=dtype))
        assert z.shape == (2, 0, 3)
        assert z.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("kind", ["gumbel", "logistic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_finite_at_the_ends(kind: str, dtype: torch.dtype, u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "draw_uniform", lambda *_: torch.full((1,), u, dtype=torch.float64))
    z = draw_noise(kind, torch.zeros(1, dtype=dtype))
    assert z.isfinite().all()
    if u > 0.9:
        assert z > 36


@pytest.mark.parametrize("kind", NOISES)
def test_only_the_generator(kind: str) -> None:
    before = torch.get_rng_state()
    first, again = (draw_noise(kind, torch.zeros(99), seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(draw_noise(kind, torch.zeros(99)), draw_noise(kind, torch.zeros(99)))


@pytest.mark.parametrize(
    ("kind", "generator"),
    [("normal", None), (None, None), (2, None), ("gumbel", 3), ("gaussian", SimpleNamespace())],
)
def test_refused(kind: Any, generator: Any) -> None:
    with pytest.raises(TokenOpsError, match="draw_noise"):
        draw_noise(kind, torch.zeros(3), generator)


@pytest.mark.parametrize("kind", NOISES)
def test_a_generator_of_another_device_is_refused(kind: str) -> None:
    elsewhere = torch.zeros(3, device="meta")
    with pytest.raises(TokenOpsError, match="a generator on meta, got cpu"):
        draw_noise(kind, elsewhere, seeded(0))
    with pytest.raises(TokenOpsError, match="a generator on meta, got cpu"):
        draw_uniform((3,), elsewhere, seeded(0))


def segments(x: Tensor, generator: torch.Generator | None, draws: list[Tensor], context: Any) -> Tensor:
    """Three checkpointed steps whose gradient depends on their noise; ``draws`` collects every draw."""

    def step(x: Tensor) -> Tensor:
        z = draw_noise("gumbel", x, generator)
        draws.append(z)
        mask = soft_topk(x, 3, noise="gaussian", generator=generator)
        mask = mask + systematic_topk(x, 3, generator=generator)
        mask = mask + perturbed_topk(x, 3, samples=5, generator=generator)
        return (x * z).sin() * mask

    for _ in range(3):
        x = step(x) if context is None else checkpoint(step, x, use_reentrant=False, context_fn=context)
    return x


@pytest.mark.parametrize("own", [True, False])
def test_replay_draws_what_the_forward_drew(own: bool) -> None:
    x = torch.randn(2, 8, requires_grad=True)
    grads, after = [], []
    for checkpointed in (False, True):
        generator = seeded(7) if own else None
        torch.manual_seed(7)
        draws: list[Tensor] = []
        y = segments(x, generator, draws, replay(generator) if checkpointed else None)
        later = torch.rand(3, generator=generator)
        grads += torch.autograd.grad(y.sum(), x)
        after += [later, torch.rand(3, generator=generator)]
        if checkpointed:
            assert len(draws) == 6
            # the backward pass recomputes the last segment first
            for first, again in zip(draws[:3], reversed(draws[3:]), strict=True):
                assert torch.equal(first, again)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(after[0], after[2])
    assert torch.equal(after[1], after[3])


def test_replay_serves_two_backward_passes_and_no_grad() -> None:
    x, generator = torch.randn(2, 8, requires_grad=True), seeded(7)
    y = segments(x, generator, [], replay(generator))
    first, again = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    with torch.no_grad():
        assert segments(x, generator, [], replay(generator)).shape == x.shape


def test_replay_puts_the_generator_back_when_recomputation_fails() -> None:
    x, generator, calls = torch.randn(4, requires_grad=True), seeded(0), []

    def step(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError
        return (x * draw_noise("gumbel", x, generator)).sin()

    y = checkpoint(step, x, use_reentrant=False, context_fn=replay(generator))
    state = generator.get_state()
    with pytest.raises(ArithmeticError):
        y.sum().backward()
    assert torch.equal(generator.get_state(), state)


def test_without_replay_a_generator_draws_anew() -> None:
    x, generator, draws = torch.randn(2, 8, requires_grad=True), seeded(7), []
    y = segments(x, generator, draws, replay(None))
    torch.autograd.grad(y.sum(), x)
    assert not torch.equal(draws[0], draws[-1])
