"""``ascending`` against torch's own sort, and every way torch may look at it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tokenops import TokenOpsError
from tokenops.kernels import order
from tokenops.kernels.order import ascending, reference
from tokenops.testing.drawing import Draw, hold


def odd_scores(draw: Draw) -> Tensor:
    x = draw.dyadic(draw.integer(1, 4), draw.integer(1, 40))
    x = x.to(draw.choice(torch.float32, torch.float64, torch.bfloat16, torch.float16))
    for value in (math.nan, math.inf, -math.inf):
        x.view(-1)[draw.integer(0, x.numel() - 1)] = value
    return x


def test_it_sorts() -> None:
    def law(draw: Draw) -> None:
        x = odd_scores(draw)
        before = x.clone()
        torch.testing.assert_close(ascending(x), reference.ascending(x), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(x.nan_to_num(), before.nan_to_num())

    hold(law)


def test_a_partition_puts_one_score_in_its_place() -> None:
    def law(draw: Draw) -> None:
        x = odd_scores(draw)
        kth = draw.integer(0, x.shape[-1] - 1)
        parted, ranked = ascending(x, kth), reference.ascending(x)
        for part in (slice(kth), slice(kth, kth + 1), slice(kth + 1, None)):
            mine, theirs = parted[:, part].sort(-1).values, ranked[:, part]
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)

    hold(law)


@pytest.mark.parametrize("kth", [None, 3])
def test_any_layout(kth: int | None) -> None:
    x = torch.randn(5, 3, 8)
    for strange in (x.transpose(0, 1), x[::2], x.flip(0), x[:, :1].expand(5, 4, 8), x[:0], x[0, 0]):
        got = ascending(strange, kth)
        assert got.is_contiguous()
        assert torch.equal(got.sort(-1).values, strange.sort(-1).values)


def test_no_gradient_comes_back() -> None:
    assert not ascending(torch.randn(2, 5, requires_grad=True)).requires_grad


@pytest.mark.parametrize("kth", [None, 2])
def test_under_vmap_compile_and_without_values(kth: int | None) -> None:
    x = torch.randn(3, 4, 7)
    assert torch.equal(torch.vmap(lambda r: ascending(r, kth), in_dims=1)(x), ascending(x.movedim(1, 0), kth))
    graph = torch.compile(lambda r: ascending(r, kth) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(x), ascending(x, kth) + 1)
    with FakeTensorMode():
        assert ascending(torch.empty(3, 7), kth).shape == (3, 7)
    assert ascending(torch.empty(3, 7, device="meta"), kth).shape == (3, 7)


def test_torch_finds_nothing_wrong_with_the_operation() -> None:
    for kth in (None, 2):
        torch.library.opcheck(torch.ops.tokenops.order_.default, (torch.randn(3, 7), kth))


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "VECTORS", False)
    x = torch.randn(3, 7)
    assert torch.equal(ascending(x, 2), x.sort(-1).values)


@pytest.mark.parametrize(
    ("scores", "kth", "got"),
    [
        (torch.arange(3), None, "int64"),
        (torch.tensor(1.0), None, r"float32 \(\)"),
        ([1.0], None, "list"),
        (torch.zeros(2, 3), 3, "3"),
        (torch.zeros(2, 3), -1, "-1"),
        (torch.zeros(2, 0), 0, "0"),
    ],
)
def test_refuses(scores: Tensor, kth: int | None, got: str) -> None:
    with pytest.raises(TokenOpsError, match=f"ascending.*{got}"):
        ascending(scores, kth)
