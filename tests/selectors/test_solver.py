"""The ranked solver: one cut for a number and for a tensor of counts, endless gaps, the largest numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tokenops.selectors.relaxations import easy, log_balance, soft_topk, soft_topk_threshold
from tokenops.selectors.relaxations.family import METHODS
from tokenops.testing.drawing import Draw, assert_close, hold

members = pytest.mark.parametrize("member", METHODS)


@pytest.fixture(autouse=True)
def no_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy, "quick", lambda *_: None)


def ranked(x: Tensor, k: float | Tensor, member: str, temperature: float = 1.0) -> Tensor:
    """With a mask that hides nothing."""
    return soft_topk(x, k, method=member, temperature=temperature, mask=torch.ones_like(x, dtype=torch.bool))


@members
def test_a_number_and_a_tensor_of_counts_solve_alike(member: str) -> None:
    def law(draw: Draw) -> None:
        n = draw.integer(2, 40)
        x = draw.normal(3, n, dtype=torch.float64) * draw.choice(1.0, 100.0)
        x = x.masked_fill(draw.mask(3, n), -math.inf) if draw.choice(True, False) else x
        k = draw.choice(float(draw.integer(0, n + 1)), draw.number(0, n))
        assert_close(ranked(x, k, member), ranked(x, torch.full((3,), k, dtype=torch.float64), member), 1e-9)

    hold(law)


@members
@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_gaps_without_end(member: str, temperature: float) -> None:
    far = [1e38, 0.0, 0.0, 0.0, -1e38]
    for row, k, wanted in (
        (far, 2, [1, 1 / 3, 1 / 3, 1 / 3, 0]),
        (far, 1, [1, 0, 0, 0, 0]),
        (far, 4, [1, 1, 1, 1, 0]),
        ([3e38, 2e38, -3e38, -3.4e38], 1.5, [1, 0.5, 0, 0]),
        ([-3e38, -3.2e38, -3.4e38], 1, [1, 0, 0]),
        ([3.4e38, 3.4e38, 3e38], 1, [0.5, 0.5, 0]),
        ([math.inf, math.inf, 3e38, -math.inf], 1, [0.5, 0.5, 0, 0]),
        ([3e4, 0.0, -3e4], 2, [1, 1, 0]),
    ):
        x = torch.tensor([row])
        for count in (k, torch.tensor([float(k)])):
            assert_close(ranked(x, count, member, temperature), torch.tensor([wanted]), 1e-6)


@members
def test_scores_of_any_size(member: str) -> None:
    """The distance of the nearest score and half a gap are the same number, but for rounding."""

    def law(draw: Draw) -> None:
        n = draw.integer(3, 8)
        x = draw.normal(1, n) * 10 ** draw.number(0, 36)
        k = draw.integer(1, n - 1)
        for count in (k, torch.tensor([float(k)])):
            assert abs(float(ranked(x, count, member).double().sum()) - k) < 1e-3

    hold(law)


@pytest.mark.parametrize(
    ("member", "dtype", "most"),
    [
        ("sigmoid", torch.float32, 1e-5),
        ("laplace", torch.float32, 1e-5),
        ("sigmoid", torch.float64, 1e-12),
        ("laplace", torch.float64, 1e-12),
    ],
)
def test_many_equal_scores_at_the_cut(member: str, dtype: torch.dtype, most: float) -> None:
    """A few high scores, all others 0, k one more: the log-balance bends here more than anywhere."""
    for n in (100, 1000, 10000, 100000):
        for high in (2, 6, 9, 11, 14):
            for count in (1, 5, 20, 40, 90):
                x = (torch.arange(n) < count).to(dtype)[None] * high
                valid = torch.ones_like(x, dtype=torch.bool)
                for scores, k in ((x, count + 1), (-x, n - count - 1)):
                    mask, nu = soft_topk_threshold(scores, k, method=member, mask=valid)
                    assert log_balance(scores, k, nu, method=member).abs() < most, (n, high, count)
                    assert abs(float(mask.double().sum()) - k) < 1e-6 * n, (n, high, count)


@pytest.mark.parametrize("member", ["sigmoid", "laplace"])
@pytest.mark.parametrize(
    ("dtype", "edge", "most"),
    [
        (torch.float32, False, 2e-5),
        (torch.float32, True, 6e-5),
        (torch.float64, False, 1e-9),
        (torch.float64, True, 1e-9),
    ],
)
def test_groups_of_equal_scores(member: str, dtype: torch.dtype, edge: bool, most: float) -> None:
    """Few levels, each held by one score or by thousands, far apart or close; ``edge``: k is one's size."""

    def law(draw: Draw) -> None:
        count = draw.integer(2, 6)
        levels = sorted(draw.integer(-12, 12) * draw.choice(0.25, 1.0, 2.0) for _ in range(count))
        groups = [torch.full((int(10 ** draw.number(0, 4)),), v, dtype=dtype) for v in levels]
        x = torch.cat(groups)[None]
        n = x.shape[-1]
        if edge:
            k = draw.choice(max(len(groups[-1]) + draw.integer(-1, 1), 1), n - len(groups[0]))
        else:
            k = draw.choice(draw.integer(1, n), n - draw.integer(1, n), draw.number(0.001, 1) * n)
        valid = torch.ones_like(x, dtype=torch.bool)
        mask, nu = soft_topk_threshold(x, k, method=member, mask=valid)
        assert log_balance(x, k, nu, method=member).abs() < most
        assert abs(float(mask.double().sum()) - k) < 1e-6 * n
        if dtype == torch.float64:
            assert_close(mask, METHODS[member].value(x - nu[:, None]), 1e-9)

    hold(law)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("padding", [0, 40050])
def test_groups_of_thousands_of_equal_scores(dtype: torch.dtype, most: float, padding: int) -> None:
    """Where k is the size of the group at the cut, some scores at its foot decide the threshold."""
    groups = ((30000, 0.0), (1, 0.0), (49, -7.3), (10000, -15.0))
    x = torch.cat([torch.full((m,), v, dtype=dtype) for m, v in groups] + [torch.zeros(padding, dtype=dtype)])
    valid = (torch.arange(len(x)) < len(x) - padding)[None]
    for scores, k in ((x[None], 30000), (-x[None], 10050)):
        _, nu = soft_topk_threshold(scores, k, mask=valid)
        assert log_balance(scores, k, nu, mask=valid).abs() < most


@members
def test_a_row_with_too_few_tokens_keeps_them_all(member: str) -> None:
    x = torch.tensor([[1.0, -math.inf, 0.5, -math.inf], [1.0, 0.0, 0.5, -math.inf]])
    for k in (2, 2.5, 7, torch.tensor([2.0, 7.0])):
        mask, threshold = soft_topk_threshold(x, k, method=member)
        assert mask[0].tolist() == [1, 0, 1, 0], k
        assert threshold[0] == -math.inf, k


@members
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_next_to_nothing_is_kept(member: str, dtype: torch.dtype) -> None:
    for n in (1, 2, 100):
        x = torch.randn(2, n, dtype=dtype)
        for k in (1e-10, 1e-20, 1e-45, 1e-300, 5e-324):
            p = ranked(x, k, member)
            assert p.isfinite().all(), (n, k)
            assert (p.double().sum(-1) - k).abs().max() < 1e-9, (n, k)


@members
def test_not_a_number_stays_in_its_row(member: str) -> None:
    x = torch.randn(2, 9)
    x[0, 4] = math.nan
    for k in (0.5, 3, 3.5, torch.tensor([3.0, 3.5])):
        p = ranked(x, k, member)
        assert p[0].isnan().all(), k
        assert not p[1].isnan().any(), k


@members
@pytest.mark.parametrize("k", [3, 2.5])
def test_a_graph_for_rows_of_any_length(member: str, k: float) -> None:
    """What one length was traced with holds for another."""
    graph = make_fx(lambda x: soft_topk(x, k, method=member), tracing_mode="symbolic")(torch.randn(2, 9))
    assert_close(graph(torch.randn(4, 12)).sum(-1), torch.full((4,), float(k)), 1e-5)
