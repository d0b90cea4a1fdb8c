"""What every relaxation promises: ``(scores (b n), k, *, mask, <own knobs>) -> soft mask (b n)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenops.kernels.topk import hard_topk
from tokenops.signals import needs
from tokenops.testing import relaxation_gradients as gradients
from tokenops.testing.drawing import Draw, Law, assert_close, hold


def _case(draw: Draw, least: int = 2, most: int = 24) -> tuple[Tensor, int]:
    """Dyadic scores with ties and a count strictly between 0 and n."""
    n = draw.integer(least, most)
    return draw.dyadic(draw.integer(1, 4), n), draw.integer(1, n - 1)


def sums_to_k(relax: Any, draw: Draw) -> None:
    """Σp = k for integer, real and per-row k, and 0 <= p <= 1."""
    x, k = _case(draw)
    part = draw.number(0.0, 1.0)
    for count in (k, k - part, torch.full((len(x),), k), torch.linspace(0, k, len(x))):
        p = relax(x, count)
        assert ((p >= 0) & (p <= 1)).all(), "p must lie in [0, 1]"
        wanted = torch.as_tensor(count, dtype=torch.float64).expand(len(x))
        assert_close(p.double().sum(-1), wanted, 16 * 1.2e-7 * k + 1e-6)


def sums_to_k_in_large_rows(relax: Any, draw: Draw) -> None:
    """Σp = k to 1e-6 of k for n = 2048 at any scale."""
    k = draw.integer(1, 2047)
    x = draw.normal(1, 2048) * draw.choice(1.0, 1e-3, 30.0)
    assert_close(relax(x, k).double().sum(-1), torch.tensor([k]), 1e-6 * k + 1e-6)


def permutation_equivariant(relax: Any, draw: Draw) -> None:
    """f(Px) = P f(x)."""
    x, k = _case(draw)
    order = draw.permutation(x.shape[1])
    assert_close(relax(x[:, order], k), relax(x, k)[:, order], 1e-6)


def shift_invariant(relax: Any, draw: Draw) -> None:
    """f(x + c) = f(x)."""
    x, k = _case(draw)
    assert_close(relax(x + draw.integer(-4096, 4096), k), relax(x, k), 4e-6)


def monotone(relax: Any, draw: Draw) -> None:
    """A higher score gets no less, equal scores get the same, a larger k takes from nobody."""
    x, k = _case(draw)
    p, more = relax(x, k), relax(x, k + draw.number(0.0, 1.0))
    order = x.argsort(-1)
    assert (p.gather(-1, order).diff(dim=-1) >= -1e-7).all(), "p must ascend with the scores"
    equal = x[..., None] == x[..., None, :]
    assert (((p[..., None] - p[..., None, :]).abs() <= 1e-7) | ~equal).all(), "ties must get the same"
    assert (more - p >= -1e-6).all(), "p must ascend with k"


def complement(relax: Any, draw: Draw) -> None:
    """1 - f(x, k) = f(-x, n - k): what is dropped is a Top-K of the negated scores."""
    x, k = _case(draw)
    assert_close(1 - relax(x, k), relax(-x, x.shape[1] - k), 1.5e-6)


def accurate(relax: Any, draw: Draw) -> None:
    """Float32 equals the float64 solution, with a large common offset too."""
    x, k = _case(draw)
    exact = relax(x.double(), k)
    assert exact.dtype == torch.float64, "float64 in, float64 out"
    assert_close(relax(x, k), exact, 1e-6)
    assert_close(relax(x + 8192, k), exact, 1e-6)


def hard_limit(relax: Any, draw: Draw) -> None:
    """Distinct scores times 1e4 give the hard Top-K."""
    b, n = draw.integer(1, 3), draw.integer(2, 24)
    x, k = draw.distinct(b, n), draw.integer(1, n - 1)
    assert_close(relax(x * 1e4, k), hard_topk(x, k).float(), 2e-6)


def huge_scores(relax: Any, draw: Draw) -> None:
    """|x| up to 1e30: finite and Σp = k, real k included."""
    b, n = draw.integer(1, 3), draw.integer(2, 24)
    x = draw.distinct(b, n)
    x = x / x.abs().max() * draw.choice(1e2, 1e6, 1e30)
    k = draw.integer(1, n - 1) + draw.choice(0.0, 0.5)
    assert_close(relax(x, k).double().sum(-1), torch.full((b,), k), 1e-5 * k)


def limits(relax: Any, draw: Draw) -> None:
    """K <= 0 gives zeros and k >= n ones, exactly, with zero gradient; n = 1 gives min(1, k)."""
    b, n = draw.integer(1, 3), draw.integer(1, 9)
    x = draw.dyadic(b, n).requires_grad_()
    for k, value in ((0, 0.0), (-draw.integer(1, 5), 0.0), (n, 1.0), (n + draw.integer(1, 5), 1.0)):
        p = relax(x, k)
        assert (p == value).all(), f"k = {k} of {n} must give {value}"
        (grad,) = torch.autograd.grad((p * draw.normal(b, n)).sum(), x)
        assert not grad.any(), f"k = {k} of {n} must give no gradient"
    k = draw.number(0.0, 2.0)
    assert_close(relax(x[:, :1], k).detach(), torch.full((b, 1), min(1.0, k)), 1e-6)


def padding_inert(relax: Any, draw: Draw) -> None:
    """Padding and -inf get exactly 0 and no gradient; the rest is the unpadded result.

    So it is where padding hands back NaN.
    """
    b, n = draw.integer(1, 3), draw.integer(1, 12)
    x, mask, k = draw.dyadic(b, n), draw.mask(b, n), draw.integer(1, n)
    weight = draw.normal(b, n)
    for filler in (0.0, float("nan"), 1e30, -1e30, float("inf"), -float("inf")):
        content = x.masked_fill(~mask, filler).requires_grad_()
        p = relax(content, k, mask=None if filler == -float("inf") else mask)
        back = weight if filler == -float("inf") else weight.masked_fill(~mask, float("nan"))
        (grad,) = torch.autograd.grad(p, content, back)
        assert not p[~mask].any(), "padding must get 0"
        assert not grad[~mask].any(), "padding must get no gradient"
        for i, valid in enumerate(mask):
            alone = x[i, valid][None].requires_grad_()
            q = relax(alone, k)
            (g,) = torch.autograd.grad((q * weight[i, valid]).sum(), alone)
            assert_close(p[i, valid], q[0], 1e-6)
            assert_close(grad[i, valid], g[0], 1e-6)


def row_independent(relax: Any, draw: Draw) -> None:
    """A row of a batch, whatever the others' scale or content, equals the row alone."""
    x, k = _case(draw)
    x = torch.cat([x, x[:1] * 1e4, x[:1] * 0, x[:1] * float("nan")])
    together = relax(x, k)
    for i in range(len(x) - 1):
        assert_close(together[i : i + 1], relax(x[i : i + 1], k), 1e-6)
    assert together[-1].isnan().all(), "a NaN score must make its row NaN"


def half_precision(relax: Any, draw: Draw) -> None:
    """Half-precision scores give the float32 mask of their values."""
    dtype, k = draw.choice(torch.bfloat16, torch.float16), draw.integer(1, 1023)
    x = draw.normal(2, 1024, dtype=dtype) * 4
    p = relax(x, k)
    assert p.dtype == torch.float32, "half precision in, float32 out"
    assert_close(p, relax(x.double(), k), 1e-6)


def inputs_stay(relax: Any, draw: Draw) -> None:
    """Neither the mask nor its gradient changes scores, k or padding."""
    x, k = _case(draw)
    content, mask, count = (
        draw.choice(x, x.double()).requires_grad_(),
        draw.mask(*x.shape),
        torch.full((len(x),), k),
    )
    before = content.detach().clone(), mask.clone(), count.clone()
    for _ in range(2):
        relax(content, count, mask=mask).square().sum().backward()
        for now, then in zip((content.detach(), mask, count), before, strict=True):
            assert torch.equal(now, then), "the input must not change"


def any_layout(relax: Any, draw: Draw) -> None:
    """One to four dimensions, any token axis, strided, expanded and empty input."""
    x, k = _case(draw)
    p = relax(x, k)
    assert_close(relax(x[0], k), p[0], 1e-6)
    assert_close(relax(x.repeat(1, 2)[:, ::2].contiguous(), k), relax(x.repeat(1, 2)[:, ::2], k), 1e-6)
    assert_close(relax(x.T.contiguous().T, k), p, 1e-6)
    assert relax(x[:0], k).shape == x[:0].shape, "an empty batch must stay empty"
    assert relax(x[:, :0], k).shape == x[:, :0].shape, "rows without tokens must stay empty"
    assert_close(relax(x[0].expand(3, -1), k), p[0].expand(3, -1), 1e-6)
    deep = torch.stack([x, x + 1])[:, None]
    assert_close(relax(deep, k)[1, 0], p, 4e-6)
    if "dim" in needs(relax):
        axis = draw.integer(-4, 3)
        assert_close(relax(deep.movedim(-1, axis), k, dim=axis).movedim(axis, -1)[0, 0], p, 4e-6)


def temperature_scales(relax: Any, draw: Draw) -> None:
    """f(x, k, τ) = f(x/τ, k, 1), for a number and for a tensor per row."""
    if "temperature" not in needs(relax):
        return
    x, k = _case(draw)
    tau = draw.choice(1.0, 0.25, 0.5, 2.0, 8.0)
    expected = relax(x / tau, k)
    assert_close(relax(x, k, temperature=tau), expected, 1e-6)
    assert_close(relax(x, k, temperature=torch.full((len(x),), tau)), expected, 1e-6)


def a_ratio_is_of_the_valid(relax: Any, draw: Draw) -> None:
    """ratio: that share of the row's own valid tokens; hard, rounded down, above 0 to one token at least."""
    if not {"ratio", "hard"} <= set(needs(relax)):
        return
    x, _ = _case(draw)
    mask, x = draw.mask(*x.shape), x.masked_fill(x > 6, -float("inf"))
    valid = (mask & (x != -float("inf"))).sum(-1)
    for ratio in (draw.number(0.0, 1.0), torch.linspace(0, 1, len(x), dtype=torch.float64)):
        share = torch.as_tensor(ratio, dtype=torch.float64).expand(len(x))
        p = relax(x, ratio=ratio, mask=mask)
        assert_close(p, relax(x, share * valid, mask=mask), 1e-6)
        ones = relax(x, ratio=ratio, mask=mask, hard=True).sum(-1)
        wanted = (share * valid + 1e-6).floor().clamp(min=1).minimum(valid) * (share > 0)
        assert torch.equal(ones, wanted.to(ones.dtype)), "hard must round a ratio down, but keep one token"


def segments_stand_alone(relax: Any, draw: Draw) -> None:
    """segments: each has the budget to itself, as if it were called alone; -1 belongs to none."""
    if "segments" not in needs(relax):
        return
    b, n, s = draw.integer(1, 3), draw.integer(1, 16), draw.integer(1, 4)
    x, weight = draw.dyadic(b, n).requires_grad_(), draw.normal(b, n)
    place, mask = torch.randint(-1, s, (b, n), generator=draw.generator()), draw.mask(b, n)
    k = draw.choice(draw.number(0.0, 5.0), torch.rand(b, s, generator=draw.generator()) * 4)
    p = relax(x, k, segments=place, mask=mask)
    (grad,) = torch.autograd.grad((p * weight).sum(), x)
    wanted, slopes = torch.zeros(b, n), torch.zeros(b, n)
    for row in range(b):
        for segment in range(s):
            chosen = (place[row] == segment) & mask[row]
            alone = x.detach()[row, chosen].requires_grad_()
            q = relax(alone, float(k[row, segment]) if isinstance(k, Tensor) else k)
            (g,) = torch.autograd.grad((q * weight[row, chosen]).sum(), alone)
            wanted[row, chosen], slopes[row, chosen] = q.detach(), g
    assert_close(p.detach(), wanted, 1e-6)
    assert_close(grad, slopes, 2e-6)


def hard_is_straight_through(relax: Any, draw: Draw) -> None:
    """hard=True: exactly k ones, the lowest index winning ties, with the gradient of the soft mask."""
    if "hard" not in needs(relax):
        return
    x, k = _case(draw)
    x.requires_grad_()
    weight = draw.normal(*x.shape)
    hard, soft = relax(x, k, hard=True), relax(x, k)
    assert torch.equal(hard.detach(), hard_topk(x, k).float()), "hard must be the hard Top-K"
    for_hard, for_soft = (torch.autograd.grad((p * weight).sum(), x)[0] for p in (hard, soft))
    assert torch.equal(for_hard, for_soft), "hard must pass the soft gradient"


LAWS: tuple[Law, ...] = (
    sums_to_k,
    sums_to_k_in_large_rows,
    permutation_equivariant,
    shift_invariant,
    monotone,
    complement,
    accurate,
    hard_limit,
    huge_scores,
    limits,
    padding_inert,
    row_independent,
    half_precision,
    inputs_stay,
    any_layout,
    temperature_scales,
    a_ratio_is_of_the_valid,
    segments_stand_alone,
    hard_is_straight_through,
    *gradients.LAWS,
)


def check_relaxation(relax: Callable[..., Tensor]) -> None:
    """Hold a relaxation of the threshold family, p = C((x - ν)/τ) with symmetric C, to every law.

    Shapes: of the relaxation: scores (b n), k int or (b), mask (b n) -> (b n).

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed.

    >>> check_relaxation(lambda scores, k, *, mask=None, temperature=1.0: scores.sigmoid())
    Traceback (most recent call last):
    ...
    AssertionError: Tensor-likes are not close!...
    """
    for law in LAWS:
        hold(law, relax)
    gradients.compiles(relax)
