"""The threshold family: independent algorithms agree, limits are identities, the certificate certifies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import (
    Curve,
    capped_simplex_topk,
    easy,
    entmax15,
    entmax_curve,
    entmax_topk,
    hard_topk,
    log_balance,
    soft_topk,
    soft_topk_threshold,
    sparsemax,
)
from tokenops.selectors.relaxations.family import METHODS
from tokenops.testing import relaxation_gradients
from tokenops.testing.drawing import Draw, assert_close, hold

CURVES: dict[str, Curve] = {name: METHODS[name] for name in ("sigmoid", "laplace", "gaussian")} | {
    "capped_simplex": METHODS["capped_simplex"],
    "entmax1": entmax_curve(1),
    "entmax1.02": entmax_curve(1.02),
    "entmax1.3": entmax_curve(1.3),
    "entmax15": METHODS["entmax15"],
}
BALANCED = ("sigmoid", "laplace")
FAMILIES = ("normal", "wide", "narrow", "ties", "outliers", "cauchy", "two-valued", "gap", "offset", "lone")
members = pytest.mark.parametrize("member", CURVES)
families = pytest.mark.parametrize("family", FAMILIES)


def scores_of(family: str, b: int, n: int, seed: int = 0) -> Tensor:
    """Float32 scores (b n)."""
    g = torch.Generator().manual_seed(seed + 1000 * n)
    x, u = torch.randn(b, n, generator=g), torch.rand(b, n, generator=g)
    return {
        "normal": x,
        "wide": 100 * x,
        "narrow": 1e-3 * x,
        "ties": x.round(),
        "outliers": torch.where(x > 1.3, 300 + 30 * x, x),
        "cauchy": torch.tan(math.pi * (u - 0.5)),
        "two-valued": 20.0 * (u < 0.3),
        "gap": x.sign() * 200 + x,
        "offset": x + 65536,
        "lone": torch.where(torch.arange(n) == 0, 1e4, x),
    }[family]


def counts(b: int, n: int, seed: int = 0) -> Tensor:
    """Real and whole counts (b) float64 in (0, n)."""
    g = torch.Generator().manual_seed(seed)
    k = torch.rand(b, generator=g, dtype=torch.float64) * n
    return torch.where(torch.rand(b, generator=g) < 0.5, k.round(), k).clamp(1e-2, n - 1e-2)


def bisected(x: Tensor, k: Tensor, curve: Curve) -> Tensor:
    """The mask in float64 by halving an interval, seen from the middle score."""
    x = x.double()
    x = x - x.median(-1, True).values
    low, high = x.amin(-1, True) - 60, x.amax(-1, True) + 60
    for _ in range(80):
        middle = (low + high) / 2
        much = curve.value(x - middle).sum(-1, True) > k[:, None]
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    return curve.value(x - (low + high) / 2)


def by_lines(x: Tensor, k: float) -> Tensor:
    """Capped simplex: the sum is a straight line between the sorted points x ± 1/2."""
    points = torch.cat([x - 0.5, x + 0.5]).sort(descending=True).values
    sums = (x - points[:, None] + 0.5).clamp(0, 1).sum(-1)
    right = int((sums < k).sum().clamp(1, len(points) - 1))
    rise = sums[right] - sums[right - 1]
    share = (k - sums[right - 1]) / rise if rise > 0 else 0.5
    nu = points[right - 1] + share * (points[right] - points[right - 1])
    return (x - nu + 0.5).clamp(0, 1)


def by_quadratics(x: Tensor, k: float) -> Tensor:
    """Laplace: a quadratic equation in exp ν between two neighbouring scores."""
    ranked = x.sort(descending=True).values
    sums = METHODS["laplace"].value(ranked - ranked[:, None]).sum(-1)
    above = int((sums <= k).sum())
    center = ranked[max(above - 1, 0)]
    top, rest = (center - ranked[:above]).exp().sum(), (ranked[above:] - center).exp().sum()
    root = ((above - k) ** 2 + top * rest).sqrt()
    z = ((above - k) + root) / top if above >= k else rest / (root - (above - k))
    return METHODS["laplace"].value(x - center - z.log())


def by_counting_ones(x: Tensor, k: float) -> Tensor:
    """Clipped exponential: the smallest number of ones that leaves nobody above 1."""
    ranked = x.sort(descending=True).values
    for ones in range(math.ceil(k)):
        nu = ranked[ones:].logsumexp(0) - math.log(k - ones)
        if ranked[ones] <= nu:
            break
    return (x - nu).clamp(max=0).exp()


CLOSED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "capped_simplex": by_lines,
    "laplace": by_quadratics,
    "entmax1": by_counting_ones,
}


Ways = Callable[[], Iterator[None]]


@pytest.fixture
def used() -> list[Any]:
    """What the quick way found, call by call."""
    return []


@pytest.fixture
def either_way(used: list[Any], monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Twice the rest of a loop: with the quick way first, and by ranking alone."""

    def watched(*arguments: Any) -> Any:
        used.append(found := quick(*arguments))
        return found

    def ways() -> Iterator[None]:
        for way in (watched, lambda *_: None):
            monkeypatch.setattr(easy, "quick", way)
            yield

    quick = easy.quick
    return ways


@members
@families
def test_algorithms_agree(member: str, family: str, either_way: Ways, used: list[Any]) -> None:
    curve = CURVES[member]
    for n in (2, 5, 40, 257):
        x, k = scores_of(family, 6, n), counts(6, n, seed=n)
        exact = bisected(x, k, curve)
        solved = (exact.sum(-1) - k).abs() < 1e-9 * n
        assert solved.sum() >= 5
        for _ in either_way():
            assert_close(soft_topk(x, k, method=curve)[solved].double(), exact[solved], 1e-6)
            assert_close(soft_topk(x.double(), k, method=curve)[solved], exact[solved], 1e-11)
            each = torch.stack(
                [soft_topk(r, float(c), method=curve) for r, c in zip(x[:3], k[:3], strict=True)]
            )
            assert_close(each[solved[:3]].double(), exact[:3][solved[:3]], 1e-6)
    if family == "normal":
        assert any(found is not None for found in used), "the quick path must serve easy rows"


@members
@families
def test_padding_changes_nothing_either_way(
    member: str, family: str, either_way: Ways, used: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows spread over wider ones of junk, each with a count of its own."""
    curve = CURVES[member]
    for n in (2, 5, 40, 3000):
        x, k = scores_of(family, 6, n), counts(6, n, seed=n)
        g = torch.Generator().manual_seed(n)
        slots = torch.rand(6, 2 * n + 1, generator=g).argsort(-1)[:, :n].sort(-1).values
        mask = torch.zeros(6, 2 * n + 1, dtype=torch.bool).scatter(1, slots, True)
        junk = torch.tensor([math.nan, math.inf, -math.inf, 3e38])
        wide = junk[torch.randint(4, mask.shape, generator=g)].scatter(1, slots, x)
        monkeypatch.setattr(easy, "quick", lambda *_: None)
        alone = soft_topk(x.double(), k, method=curve)
        for _ in either_way():
            got = soft_topk(wide, k, method=curve, mask=mask)
            assert_close(got.gather(1, slots).double(), alone, 1e-6)
            assert (got[~mask] == 0).all()
            got = soft_topk(wide.double(), k, method=curve, mask=mask)
            assert_close(got.gather(1, slots), alone, 1e-11)
    if family == "normal":
        assert any(found is not None for found in used), "the quick path must serve easy rows"
        assert used[-1] is not None


@pytest.mark.parametrize("member", CLOSED)
@families
def test_closed_forms_agree(member: str, family: str) -> None:
    for n in (2, 5, 33):
        x, k = scores_of(family, 5, n, seed=1).double(), counts(5, n, seed=n)
        x = torch.where(x == 1e4, 500.0, x)  # exp(-1e4) is 0
        p = soft_topk(x, k, method=CURVES[member])
        for row, count, got in zip(x, k.tolist(), p, strict=True):
            assert_close(got, CLOSED[member](row, count), 1e-10)


@families
def test_one_of_many_is_sparsemax_and_entmax(family: str) -> None:
    x = scores_of(family, 7, 19).double()
    ranked, i = x.sort(-1, descending=True).values, torch.arange(1, 20)
    # sparsemax: 1 + i x_(i) > the sum of the i highest
    nu = (ranked.cumsum(-1) - 1) / i
    inside = (1 + i * ranked > ranked.cumsum(-1)).sum(-1, True) - 1
    expected = (x - nu.gather(-1, inside)).clamp(min=0)
    assert_close(sparsemax(x), expected, 1e-10)
    assert_close(capped_simplex_topk(x, 1), expected, 1e-10)
    assert_close(entmax_topk(x, 1, alpha=2), expected, 1e-10)
    # entmax at 1.5: mean and variance of the highest, halved
    z = (ranked - ranked[:, :1]) / 2
    mean = z.cumsum(-1) / i
    spread = (z.square().cumsum(-1) - i * mean.square()).clamp(min=0)
    nu = mean - ((1 - spread) / i).clamp(min=0).sqrt()
    inside = (nu <= z).sum(-1, True) - 1
    expected = ((x - ranked[:, :1]) / 2 - nu.gather(-1, inside)).clamp(min=0).square()
    assert_close(entmax15(x), expected, 1e-7)
    assert_close(entmax_topk(x, 1), expected, 1e-7)
    assert_close(entmax_topk(x, 1, alpha=1), x.softmax(-1), 1e-10)


def test_alpha_joins_the_members() -> None:
    def law(draw: Draw) -> None:
        n = draw.integer(2, 20)
        x, k = draw.normal(2, n, dtype=torch.float64), draw.number(0.2, n - 0.2)
        assert_close(entmax_topk(x, k, alpha=2), capped_simplex_topk(x, k), 0)
        assert_close(entmax_topk(x, k, alpha=2 - 1e-9), capped_simplex_topk(x, k), 1e-7)
        assert_close(entmax_topk(x, k, alpha=1 + 1e-9), entmax_topk(x, k, alpha=1), 1e-6)
        assert_close(entmax_topk(x.float(), k, alpha=1 + 1e-9), entmax_topk(x.float(), k, alpha=1), 1e-6)

    hold(law)


@members
def test_temperature_limits(member: str) -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]])
    relax = partial(soft_topk, method=CURVES[member])
    assert_close(relax(x, 2, temperature=1e-5), hard_topk(x, 2).float(), 1e-6)
    assert_close(relax(x, 2, temperature=1e7), torch.full((1, 5), 0.4), 1e-5)
    tied = torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0])
    assert_close(relax(tied, 2, temperature=1e-5), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 0]), 1e-6)


def test_the_capped_simplex_is_the_nearest_point() -> None:
    def law(draw: Draw) -> None:
        n, tau = draw.integer(2, 16), draw.choice(1.0, 0.5, 3.0)
        k = draw.number(0.1, n - 0.1)
        x = 3 * draw.normal(n, dtype=torch.float64)
        p = capped_simplex_topk(x, k, temperature=tau)
        feasible = soft_topk(draw.normal(20, n, dtype=torch.float64), k, temperature=0.3)
        assert ((feasible - p) @ (x / tau - p) <= 1e-9).all(), "no feasible point is nearer"
        assert_close(capped_simplex_topk(feasible, k), feasible, 1e-9)

    hold(law)


ENTROPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda p: p.xlogy(p) + (1 - p).xlogy(1 - p),
    "capped_simplex": lambda p: p.square() / 2,
    "entmax1": lambda p: p.xlogy(p),
    "entmax15": lambda p: p.pow(1.5) / (0.5 * 1.5),
}


@pytest.mark.parametrize("member", ENTROPIES)
def test_the_mask_maximises_its_objective(member: str) -> None:
    def law(draw: Draw) -> None:
        n, k = draw.integer(2, 12), draw.number(0.1, 0.9)
        x = draw.normal(n, dtype=torch.float64)

        def objective(p: Tensor) -> Tensor:
            return p @ x - ENTROPIES[member](p).sum(-1)

        others = soft_topk(draw.normal(30, n, dtype=torch.float64), k * n, temperature=0.5)
        p = soft_topk(x, k * n, method=CURVES[member])
        mixed = p + draw.number(0.01, 1.0) * (others - p)
        assert (objective(mixed) <= objective(p) + 1e-9).all()

    hold(law)


@pytest.mark.parametrize("member", BALANCED)
@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["quick", "branch-free"])
def test_the_certificate_is_small(
    member: str, family: str, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path != "quick":
        monkeypatch.setattr(easy, "quick", lambda *_: None)
    for n in (2, 40, 257):
        x, k = scores_of(family, 8, n, seed=2).to(dtype), counts(8, n, seed=n)
        _, nu = soft_topk_threshold(x, k, method=member)
        assert nu.dtype == torch.float64
        h = log_balance(x, k, nu, method=member).abs()
        # the quick path corrects a sum of rounded shares, which knows little about what a full row lacks
        share = torch.minimum(k, n - k).clamp(max=1) if path == "quick" else 1
        assert (h * share < (1e-5 if dtype == torch.float32 else 1e-9)).all()


@pytest.mark.parametrize("member", BALANCED)
def test_the_slope_of_the_log_balance_is_between_one_and_two(member: str) -> None:
    def law(draw: Draw) -> None:
        n = draw.integer(2, 60)
        x, tau = (
            draw.normal(n, dtype=torch.float64) * draw.choice(1.0, 1e-3, 20.0),
            draw.choice(1.0, 0.5, 4.0),
        )
        x = draw.choice(x, x.round())
        k = draw.choice(draw.integer(1, n - 1), draw.number(0.01, n - 0.01))
        start, step = 100 * draw.number(-1.0, 1.0), draw.number(0.01, 10.0)
        nu = torch.tensor([start, start - step * tau], dtype=torch.float64)
        h = log_balance(x.expand(2, n), k, nu, method=member, temperature=tau)
        assert step * (1 - 1e-6) - 1e-9 <= float(h[1] - h[0]) <= 2 * step * (1 + 1e-6) + 1e-9

    hold(law)


@pytest.mark.parametrize("member", BALANCED)
def test_the_certificate_encloses_the_threshold(member: str) -> None:
    def law(draw: Draw) -> None:
        n, tau = draw.integer(2, 40), draw.choice(1.0, 0.25, 8.0)
        x, k = draw.normal(1, n, dtype=torch.float64) * draw.choice(1.0, 30.0), draw.number(0.1, n - 0.1)
        options: dict[str, Any] = {"method": member, "temperature": tau}
        _, true = soft_topk_threshold(x, k, **options)
        wrong = true + tau * draw.choice(1, -1) * draw.number(1e-4, 30.0)
        h = log_balance(x, k, wrong, **options)
        low, high = wrong + tau * h / 2, wrong + tau * h
        assert torch.minimum(low, high) - 1e-9 <= true <= torch.maximum(low, high) + 1e-9
        assert h.abs() >= (true - wrong).abs() / tau * (1 - 1e-6), "a wrong threshold must show"

    hold(law)


@members
def test_the_threshold_gives_the_mask(member: str) -> None:
    curve = CURVES[member]

    def law(draw: Draw) -> None:
        n = draw.integer(2, 20)
        x, mask = draw.normal(3, n, dtype=torch.float64), draw.mask(3, n)
        k = draw.number(0.0, 1.0) * mask.sum(-1).double()
        tau = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
        p, nu = soft_topk_threshold(x, k, method=curve, temperature=tau, mask=mask)
        assert_close(p, soft_topk(x, k, method=curve, temperature=tau, mask=mask), 0)
        again = curve.value((x - nu[:, None]) / tau[:, None])
        assert_close(torch.where(mask, again, 0.0), p, 1e-9)
        above, border = x > nu[:, None], 0.5 if curve.symmetric else 1 - 1e-12
        clear = mask & ((p - border).abs() > 1e-9)
        assert torch.equal(above[clear], (p > border)[clear])

    hold(law)


def test_a_curve_that_ends_steeply_stays_between_zero_and_one() -> None:
    """Half a wave of a sine: next to 0 and 1 its density is far larger than what is left."""
    wave = Curve(
        name="wave",
        value=lambda u: (1 + torch.sin(math.pi * u.clamp(-0.5, 0.5))) / 2,
        density=lambda p: math.pi * (p * (1 - p)).clamp(min=0).sqrt(),
        quantile=lambda p: torch.asin(2 * p - 1) / math.pi,
        variance=0.0474,
        steepness=math.pi / 2,
    )
    g = torch.Generator().manual_seed(0)
    for share in torch.linspace(0.05, 0.95, 150).tolist():
        p = soft_topk(torch.randn(4096, generator=g), 4096 * share, method=wave)
        assert p.min() >= 0, share
        assert p.max() <= 1, share


def test_thresholds_of_odd_rows() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]] * 5 + [[math.nan, 1.0, 2.0]])
    tau = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, 1.0])
    p, nu = soft_topk_threshold(x, torch.tensor([0, 3, 1.5, 1, 1, 1]), temperature=tau)
    assert nu[:2].tolist() == [math.inf, -math.inf]
    assert nu[2] == pytest.approx(2.0)
    assert nu[3:].isnan().all()
    assert p[3:].isnan().all()
    p, nu = soft_topk_threshold(x[:3].T, 1, dim=0)
    assert nu.shape == (3,)
    assert not nu.requires_grad
    assert soft_topk_threshold(x[:, :0], 1)[1].tolist() == [math.inf] * 6


def test_a_curve_of_ones_own() -> None:
    """Student's distribution with two degrees of freedom."""
    student = Curve(
        name="student",
        value=lambda u: (1 + u / (2 + u * u).sqrt()) / 2,
        density=lambda p: (4 * p * (1 - p)).pow(1.5) / 2**1.5,
        quantile=lambda p: (2 * p - 1) / (2 * p * (1 - p)).sqrt(),
        variance=4.0,
        steepness=8**-0.5,
    )
    for family in ("normal", "wide", "ties", "two-valued"):
        x, k = scores_of(family, 4, 30).double(), counts(4, 30)
        assert_close(soft_topk(x, k, method=student), bisected(x, k, student), 1e-6)
        assert_close(soft_topk(x.float(), k, method=student).double().sum(-1), k, 1e-5)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, 2.5, method=student), x)


def test_compiles_in_every_way() -> None:
    relaxation_gradients.compiles(soft_topk, every_way=True)


@members
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_was_traced_serves_other_scores(member: str, masked: bool) -> None:
    def soft(x: Tensor, mask: Tensor, k: Tensor) -> Tensor:
        return soft_topk(x, k, method=CURVES[member], mask=mask if masked else None)

    seen = torch.randn(3, 40), torch.rand(3, 40) < 0.8, torch.tensor([3.0, 4.0, 5.0])
    other = torch.randn(3, 40) ** 3 * 50, torch.rand(3, 40) < 0.6, torch.tensor([4.0, 2.5, 9.0])
    want = soft(*other)
    for traced in (torch.jit.trace(soft, seen, check_trace=False), make_fx(soft)(*seen)):
        assert_close(traced(*other), want, 1e-6)


def test_padding_gets_no_gradient_in_a_row_with_a_nan() -> None:
    x = torch.tensor([[math.nan, 1.0, 2.0, 0.0], [0.5, 1.0, 2.0, 0.0]], requires_grad=True)
    mask = torch.tensor([True, True, True, False]).expand(2, 4)
    for member in CURVES.values():
        (eager,) = torch.autograd.grad((soft_topk(x, 1, method=member, mask=mask) * torch.arange(4)).sum(), x)
        (traced,) = torch.func.vjp(lambda s, c=member: soft_topk(s, 1, method=c, mask=mask), x.detach())[1](
            torch.arange(4.0).expand(2, 4)
        )
        for grad in (eager, traced):
            assert (grad[:, 3] == 0).all()
            assert grad[1].isfinite().all()


@pytest.mark.slow
@members
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_members_compile(member: str, backend: str) -> None:
    relaxation_gradients.compiles(partial(soft_topk, method=CURVES[member]), backend, every_way=True)


def test_padding_that_nothing_reaches_without_a_mask() -> None:
    """-inf may hide between the scores that the first guess looks at."""
    for member, curve in CURVES.items():
        x = torch.rand(1, 16384) * 2 - 1
        x[0, 1] = -math.inf
        x.requires_grad_()
        weight = torch.randn(1, 16384)
        weight[0, 1] = math.nan
        for k in (3000, 16382, 16383):
            p = soft_topk(x, k, method=curve)
            (grad,) = torch.autograd.grad(p, x, weight)
            assert p[0, 1] == grad[0, 1] == 0, member
            assert abs(float(p.double().sum()) - k) < 1e-3, member
        assert not grad.any(), member
        assert torch.equal(p.detach(), (x > -math.inf).float()), member


@pytest.mark.parametrize("gap", [2.0, 5.0, 8.0])
def test_many_scores_far_apart(gap: float) -> None:
    """Few tokens are in doubt, so rounding in a sum of thousands could move the threshold by much."""
    x = gap * (torch.randperm(16384).float() - 8192)[None]
    for k in (5461, 8192, 10922.3, 16364):
        expected = bisected(x, torch.tensor([k], dtype=torch.float64), CURVES["sigmoid"])
        assert_close(soft_topk(x, k).double(), expected, 1e-6)


def test_all_there_is_of_nearly_equal_scores() -> None:
    """k is the number of tokens, the rest is -inf that the first guess does not meet."""
    for member, curve in CURVES.items():
        x = 1e-3 * torch.rand(2, 4096)
        x[:, 2 * torch.randperm(2048)[:17] + 1] = -math.inf
        x.requires_grad_()
        p = soft_topk(x, 4096 - 17, method=curve)
        (grad,) = torch.autograd.grad(p, x, torch.randn(2, 4096))
        assert torch.equal(p.detach(), (x > -math.inf).float()), member
        assert not grad.any(), member


@pytest.mark.parametrize("member", ["sigmoid", "laplace", "gaussian"])
@pytest.mark.parametrize("n", [4096, 16384])
def test_one_token_less_than_there_are(member: str, n: int) -> None:
    """Nearly all are kept, and a rounded sum of thousands of ones would say little of the rest."""
    x = torch.randn(2, n) * 3
    x64 = x.double().requires_grad_()
    x.requires_grad_()
    weight = torch.randn(2, n)
    p, exact = soft_topk(x, n - 1, method=member), soft_topk(x64, n - 1, method=member)
    assert_close(p.double(), exact, 1.5e-5)
    (grad,) = torch.autograd.grad(p, x, weight)
    (true,) = torch.autograd.grad(exact, x64, weight.double())
    assert_close(grad.double(), true, 1e-4 * float(true.abs().max()))


@pytest.mark.parametrize("steep", [30.0, 300.0, 3000.0])
def test_a_steep_curve_of_ones_own(steep: float) -> None:
    curve = Curve(
        name="steep",
        value=lambda u: torch.sigmoid(steep * u),
        density=lambda p: steep * p * (1 - p),
        quantile=lambda p: torch.logit(p) / steep,
        variance=2.9 / steep**2,
        steepness=steep / 4,
    )
    x = torch.randn(3, 2000)
    assert_close(
        soft_topk(x, 300, method=curve).double(), soft_topk(x.double(), 300, temperature=1 / steep), 1e-6
    )


def test_gradients_in_batches() -> None:
    """Several incoming gradients in one backward pass, as vectorised Jacobians hand them over."""
    x = torch.randn(6, requires_grad=True)
    for k, mask in ((2, None), (2.5, torch.arange(6) < 5), (torch.tensor(2.0, requires_grad=True), None)):
        p = soft_topk(x, k, mask=mask)
        eye = torch.eye(6)
        rows = torch.stack([torch.autograd.grad(p, x, e, retain_graph=True)[0] for e in eye])
        (batched,) = torch.autograd.grad(p, x, eye, is_grads_batched=True, retain_graph=True)
        assert_close(batched, rows, 1e-7)
        mapped = torch.func.vmap(lambda g, p=p: torch.autograd.grad(p, x, g, retain_graph=True)[0])(eye)
        assert_close(mapped, rows, 1e-7)
        whole = torch.autograd.functional.jacobian(
            lambda z, k=k, mask=mask: soft_topk(z, k, mask=mask), x, vectorize=True
        )
        assert_close(whole, rows, 1e-7)
    hessian = torch.autograd.functional.hessian(lambda z: soft_topk(z, 2).square().sum(), x, vectorize=True)
    assert_close(
        hessian, torch.autograd.functional.hessian(lambda z: soft_topk(z, 2).square().sum(), x), 1e-6
    )


@pytest.mark.parametrize("hard", [False, True])
def test_counts_beyond_the_tokens(hard: bool) -> None:
    k = torch.tensor([math.inf, 1e30, -math.inf, -1e30, math.nan])
    p = soft_topk(torch.randn(5, 4), k, hard=hard)
    assert p[:4].sum(-1).tolist() == [4, 4, 0, 0]
    assert p[4].isnan().all()
    ratio = torch.tensor([math.inf, 2.0, -1.0, math.nan])
    p = soft_topk(torch.randn(4, 4), ratio=ratio, hard=hard)
    assert p[:3].sum(-1).tolist() == [4, 4, 0]
    assert p[3].isnan().all()


def test_the_temperature_of_huge_equal_scores_has_a_slope() -> None:
    x, tau = torch.full((1, 8), 3e38), torch.ones(1, requires_grad=True)
    (slope,) = torch.autograd.grad((soft_topk(x, 2, temperature=tau) * torch.arange(8)).sum(), tau)
    assert slope.item() == 0


def test_shapes_without_values() -> None:
    x = torch.randn(2, 8)
    assert soft_topk(x.to("meta"), 2, hard=True).shape == (2, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert soft_topk(torch.empty(2, 8), torch.ones(2), hard=True).shape == (2, 8)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"segments": [0, 0, 0]}, "segments"),
        ({"segments": torch.zeros(3).long()}, "segments"),
        ({"segments": torch.zeros(2, 3)}, "segments"),
        ({"segments": torch.full((2, 3), 4), "k": torch.ones(2)}, "segments below 2"),
        ({"segments": torch.zeros(2, 3).long(), "temperature": torch.ones(2)}, "temperature"),
        ({"out_dtype": "float16"}, "out_dtype"),
        ({"k": torch.ones(2, dtype=torch.complex64)}, "k per row"),
        ({"k": 1j}, "k as"),
        ({"k": None}, "exactly one"),
        ({"ratio": 0.5}, "exactly one"),
        ({"k": None, "ratio": 1.5}, "ratio"),
        ({"k": None, "ratio": "half"}, "ratio"),
        ({"temperature": None}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"mask": [True] * 3}, "mask"),
        ({"dim": 0.0}, "dim"),
        ({"method": "sigmoids"}, "method"),
        ({"method": None}, "method"),
        ({"noise": "pink"}, "noise"),
        ({"noise": "gumbel", "noise_scale": -1}, "noise_scale"),
        ({"noise": "gumbel", "noise_scale": "1"}, "noise_scale"),
        ({"noise": "gumbel", "noise_scale": torch.ones(5, 2)}, "noise_scale"),
        ({"noise": "gumbel", "generator": 3}, "Generator"),
    ],
)
def test_bad_input_names_itself(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(TokenOpsError, match=name):
        soft_topk(torch.randn(2, 3), **{"k": 1, **arguments})


@pytest.mark.parametrize("wrong", [0.0, [0.0, 0.0], torch.zeros(2, 1), torch.zeros(3)])
def test_a_certificate_is_of_one_threshold_per_row(wrong: Any) -> None:
    with pytest.raises(TokenOpsError, match="log_balance: expected threshold|threshold per row"):
        log_balance(torch.randn(2, 3), 1, wrong)


@pytest.mark.parametrize("alpha", [0.99, 2.01, math.nan, "1.5", True, torch.tensor(1.5)])
def test_alpha_outside_the_family(alpha: Any) -> None:
    with pytest.raises(TokenOpsError, match="alpha"):
        entmax_topk(torch.randn(3), 1, alpha=alpha)


@members
@pytest.mark.parametrize("n", [1, 2, 64, 1500])
def test_counts_next_to_none_and_all(member: str, n: int) -> None:
    """k a hair above 0 or below n: finite, and the sum is k."""
    for x in (torch.randn(2, n), torch.zeros(2, n), torch.empty(2, n).cauchy_()):
        for off in (10.0**-j for j in range(13)):
            for k in (off, n - off):
                p = soft_topk(x, k, method=CURVES[member])
                assert (p.double().sum(-1) - k).abs().max() < 1e-6 * n


@members
def test_offsets_do_not_show(member: str) -> None:
    """Far from the mean the mask is that of float64 scores, for every curve."""
    torch.manual_seed(0)
    for offset, tau, std in ((8192, 0.1, 1.0), (65536, 0.5, 3.0), (200000, 0.5, 3.0)):
        x = torch.randn(40, 256) * std + offset
        exact = soft_topk(x.double(), 13.3, method=CURVES[member], temperature=tau)
        assert_close(soft_topk(x, 13.3, method=CURVES[member], temperature=tau).double(), exact, 5e-7)


@members
def test_losses_steep_at_zero_and_one(member: str) -> None:
    """What is 0 or 1 for good takes no part, whatever slope the loss has there."""
    x = torch.tensor([[3.0, 1.0, 0.9, 0.0, -5.0, -200.0]], requires_grad=True)
    torch.special.entr(soft_topk(x, 2, method=CURVES[member])).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_a_curve_with_a_parameter_of_its_own() -> None:
    """Scores without a gradient are solved without one, whatever the curve holds."""
    steep = torch.nn.Parameter(torch.tensor(2.0))
    sigmoid = METHODS["sigmoid"]
    curve = replace(
        sigmoid,
        name="steeper",
        value=lambda u: torch.sigmoid(u * steep),
        refill=None,
        steepness=0.5,
    )
    assert (soft_topk(torch.randn(2, 9), 3, method=curve).sum(-1) - 3).abs().max() < 1e-5


def test_forward_mode_is_refused_by_torch_with_its_own_words() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(2, 9), torch.ones(2, 9))
        with pytest.raises(RuntimeError, match="jvp"):
            soft_topk(x, 3)
