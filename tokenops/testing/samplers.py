"""What every sampler promises: ``(scores (b n), k, *, mask, generator, <own knobs>) -> mask (b n)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, assert_close, hold
from tokenops.testing.inclusion import follows

FILLERS = (0.0, float("nan"), 1e30, -1e30, float("inf"), -float("inf"))


def seeded(seed: int) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


def _case(draw: Draw, least: int = 2, most: int = 12) -> tuple[Tensor, int, int]:
    """Dyadic scores with ties, a count strictly between 0 and n, a seed."""
    n = draw.integer(least, most)
    x = draw.dyadic(draw.integer(1, 4), n, most=draw.choice(1, 4))
    return x, draw.integer(1, n - 1), draw.integer(0, 2**31 - 1)


def _flat(draw: Draw) -> tuple[Tensor, int]:
    """Sixty-four rows in which every token has a fair chance."""
    n = draw.integer(4, 12)
    return (draw.normal(1, n) / 8).expand(64, n).clone(), draw.integer(1, n - 1)


def a_mask(sampler: Any, draw: Draw) -> None:
    """Every draw is in [0, 1] and sums to k, one number or one per row."""
    x, k, seed = _case(draw)
    for count in (k, torch.arange(len(x)) % x.shape[1]):
        m = sampler(x, count, generator=seeded(seed))
        assert m.shape == x.shape, "a mask must be shaped like the scores"
        assert ((m >= 0) & (m <= 1)).all(), "a mask must lie in [0, 1]"
        wanted = torch.as_tensor(count, dtype=torch.float64).expand(len(x))
        assert_close(m.double().sum(-1), wanted, 1e-5)


def ones_and_zeros(sampler: Any, draw: Draw) -> None:
    """A hard draw has exactly k ones; of a real k, the integer below or above."""
    x, k, seed = _case(draw)
    part = draw.choice(0.0, 0.25, 0.5)
    m = sampler(x, k - part, generator=seeded(seed))
    assert ((m == 0) | (m == 1)).all(), "a hard mask must hold zeros and ones"
    size = m.sum(-1)
    assert ((size == k) | ((size == k - 1) & (part > 0))).all(), f"{k - part} tokens must be kept"


def only_the_generator(sampler: Any, draw: Draw) -> None:
    """The same generator state gives the same bits, the next draw others; nothing else is drawn from."""
    x, k = _flat(draw)
    seed, before = draw.integer(0, 2**31 - 1), torch.get_rng_state()
    generator = seeded(seed)
    first, second = (sampler(x, k, generator=generator) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "a generator must be the only source"
    assert torch.equal(first, sampler(x, k, generator=seeded(seed))), "the same state must give the same mask"
    assert not torch.equal(first, second), "another draw must differ"


def rows_differ(sampler: Any, draw: Draw) -> None:
    """Equal rows are drawn one by one, in a batch and under ``torch.vmap``."""
    x, k = _flat(draw)
    generator = draw.generator()
    one = torch.vmap(lambda x: sampler(x, k, generator=generator), randomness="different")
    for m in (sampler(x, k, generator=generator), one(x)):
        assert_close(m.sum(-1), torch.full((len(x),), float(k)), 1e-5)
        assert (m != m[:1]).any(), "rows must not share their noise"


def row_independent(sampler: Any, draw: Draw) -> None:
    """What other rows hold changes nothing; NaN makes its own row NaN."""
    x, k, seed = _case(draw)
    others = [x[:1] * scale for scale in (1.0, 1e4, 0.0, float("nan"))]
    alike = sampler(torch.cat([x, *others]), k, generator=seeded(seed))
    calm = sampler(torch.cat([x, x[:1].expand(4, -1)]), k, generator=seeded(seed))
    assert_close(alike[: len(x) + 1], calm[: len(x) + 1], 1e-6)
    assert alike[-1].isnan().all(), "a NaN score must make its row NaN"


def unordered(sampler: Any, draw: Draw) -> None:
    """Tokens in another order are kept as often, to six standard deviations of 4096 draws."""
    n, rows = draw.integer(2, 6), 4096
    x, k, order = draw.normal(n), draw.integer(1, n - 1), draw.permutation(n)
    generator = draw.generator()
    means = [sampler(s.expand(rows, n), k, generator=generator).mean(0) for s in (x, x[order])]
    spread = (means[0] * (1 - means[0]) + 4 / rows)[order] * 2 / rows
    assert ((means[1] - means[0][order]).abs() <= 6 * spread.sqrt()).all(), (
        "tokens must not depend on their place"
    )


def padding_inert(sampler: Any, draw: Draw) -> None:
    """Padding and -inf get exactly 0 and no gradient, and what is stored there changes nothing."""
    b, n, seed = draw.integer(1, 3), draw.integer(1, 12), draw.integer(0, 2**31 - 1)
    x, mask, k = draw.dyadic(b, n), draw.mask(b, n), draw.integer(1, n)
    weight, results = draw.normal(b, n), []
    for filler in FILLERS:
        content = x.masked_fill(~mask, filler).requires_grad_()
        given = None if filler == -float("inf") else mask
        m = sampler(content, k, mask=given, generator=seeded(seed))
        (grad,) = torch.autograd.grad((m * weight).sum(), content)
        assert not m[~mask].any(), "padding must get 0"
        assert not grad[~mask].any(), "padding must get no gradient"
        assert_close(m.sum(-1).detach(), mask.sum(-1).clamp(max=k).float(), 1e-5)
        results.append((m.detach(), grad))
    for m, grad in results[1:]:
        assert_close(m, results[0][0], 1e-6)
        assert_close(grad, results[0][1], 1e-5)


def limits(sampler: Any, draw: Draw) -> None:
    """K <= 0 gives zeros and k >= n ones, exactly, with zero gradient."""
    b, n = draw.integer(1, 3), draw.integer(1, 9)
    x = draw.dyadic(b, n).requires_grad_()
    for k, value in ((0, 0.0), (-draw.integer(1, 5), 0.0), (n, 1.0), (n + draw.integer(1, 5), 1.0)):
        m = sampler(x, k, generator=draw.generator())
        assert (m == value).all(), f"k = {k} of {n} must give {value}"
        (grad,) = torch.autograd.grad((m * draw.normal(b, n)).sum(), x)
        assert not grad.any(), f"k = {k} of {n} must give no gradient"


def balanced_gradients(sampler: Any, draw: Draw) -> None:
    """Gradients are finite and sum to 0 over a row; one state of the generator gives one gradient."""
    x, k, seed = _case(draw)
    x, weight = (x * draw.choice(1.0, 1e2)).requires_grad_(), draw.normal(*x.shape)
    first, again = (
        torch.autograd.grad((sampler(x, k, generator=seeded(seed)) * weight).sum(), x)[0] for _ in range(2)
    )
    assert first.isfinite().all(), "gradients must be finite"
    assert torch.equal(first, again), "the same state must give the same gradient"
    total, scale = first.double().sum(-1).abs(), first.double().abs().sum(-1)
    assert (total <= 1e-5 * scale + 1e-6).all(), "gradients must sum to 0 over a row"


def learns(sampler: Any, draw: Draw) -> None:
    """On average a step along the gradient of a linear function of the mask raises it."""
    n, rows = draw.integer(2, 6), 512
    x = (draw.normal(n) / 8).expand(rows, n).clone().requires_grad_()
    weight = draw.normal(n)
    m = sampler(x, draw.integer(1, n - 1), generator=draw.generator())
    (grad,) = torch.autograd.grad((m * weight).sum(), x)
    assert (grad.mean(0) * weight).sum() > 0, "a higher score must make a token likelier"


def half_precision(sampler: Any, draw: Draw) -> None:
    """Half-precision scores give the float32 draw of their values; float64 gives float64."""
    dtype, k, seed = draw.choice(torch.bfloat16, torch.float16), draw.integer(1, 63), draw.integer(0, 9999)
    x = draw.normal(2, 64, dtype=dtype)
    m = sampler(x, k, generator=seeded(seed))
    assert m.dtype == torch.float32, "half precision in, float32 out"
    assert_close(m, sampler(x.float(), k, generator=seeded(seed)), 1e-6)
    assert sampler(x.double(), k, generator=seeded(seed)).dtype == torch.float64, "float64 in, float64 out"


def any_layout(sampler: Any, draw: Draw) -> None:
    """One or three dimensions, any token axis, strided and empty input; the scores stay as they are."""
    x, k, _ = _case(draw)
    g, before = draw.generator(), x.clone()
    assert_close(sampler(x[0], k, generator=g).sum(), torch.tensor(float(k)), 1e-5)
    assert_close(sampler(x.T.contiguous().T, k, generator=g).sum(-1), torch.full((len(x),), float(k)), 1e-5)
    assert torch.equal(x, before), "scores must not change"
    assert sampler(x[:0], k, generator=g).shape == x[:0].shape, "an empty batch must stay empty"
    assert sampler(x[:, :0], k, generator=g).shape == x[:, :0].shape, "rows without tokens must stay empty"
    if "dim" in needs(sampler):
        m = sampler(torch.stack([x, x + 1]).movedim(-1, 0), k, dim=0, generator=g)
        assert_close(m.sum(0), torch.full((2, len(x)), float(k)), 1e-5)


def refuses(sampler: Any, draw: Draw) -> None:
    """Bad input is a TokenOpsError and leaves the generator where it was."""
    x, k, seed = _case(draw)
    generator = seeded(seed)
    bad: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
        (x.long(), k, {}),
        (x, float("nan"), {}),
        (x, None, {}),
        (x, torch.ones(len(x) + 1), {}),
        (x, k, {"mask": torch.ones_like(x)}),
        (x, k, {"mask": torch.ones_like(x[:, 1:], dtype=torch.bool)}),
        (x, k, {"generator": seed}),
    )
    for scores, count, options in bad:
        try:
            sampler(scores, count, **({"generator": generator} | options))
        except TokenOpsError:
            assert torch.equal(generator.get_state(), seeded(seed).get_state()), "an error must draw nothing"
        else:
            raise AssertionError(f"bad input must raise: k={count}, {options}, {scores.dtype}")


def compiles(sampler: Any) -> None:
    """torch.compile(fullgraph=True) with PyTorch's own generator gives the eager draw and gradient."""
    x, mask = torch.linspace(-3, 3, 20).view(2, 10).sin(), torch.arange(20).view(2, 10) % 7 != 3
    results = []
    for function in (sampler, torch.compile(sampler, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            m = function(leaf, torch.tensor([2, 6]), mask=mask)
        (m * torch.arange(10)).sum().backward()
        results.append((m.detach(), leaf.grad))
    (eager, eager_grad), (compiled, compiled_grad) = results
    assert_close(compiled, eager, 1e-6)
    assert_close(compiled_grad, eager_grad, 1e-5)


LAWS: tuple[Law, ...] = (
    a_mask,
    only_the_generator,
    rows_differ,
    row_independent,
    unordered,
    padding_inert,
    limits,
    balanced_gradients,
    learns,
    half_precision,
    any_layout,
    refuses,
)


def check_sampler(
    sampler: Callable[..., Tensor],
    *,
    hard: bool = False,
    mean: Callable[[Tensor, int], Tensor] | None = None,
) -> None:
    """Hold a sampler to every law.

    Args:
        sampler: ``(scores, k, *, mask, generator)``.
        hard: every draw is a mask of zeros and ones.
        mean: ``(scores (3) float64, k) -> (3)``, the probability of each token, if it is known.

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed.
    """
    for law in (*LAWS, *((ones_and_zeros,) if hard else ())):
        hold(law, sampler)
    compiles(sampler)
    if mean is not None:
        follows(sampler, mean)
