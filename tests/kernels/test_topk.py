"""Exact Top-K against Python's sort."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenops import TokenOpsError
from tokenops.kernels import order
from tokenops.kernels.topk import MANY, hard_topk, reference
from tokenops.testing import check_kernel
from tokenops.testing.drawing import Draw

INF, NAN = float("inf"), float("nan")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])


def case(draw: Draw) -> Any:
    b, n = draw.integer(1, 3), draw.integer(1, 12)
    scores = draw.dyadic(b, n, most=1).to(draw.choice(torch.float32, torch.float64, torch.bfloat16))
    special = torch.tensor([NAN, INF, -INF])[torch.randint(3, (b, n), generator=draw.generator())]
    scores = torch.where(draw.mask(b, n) & draw.mask(b, n), special.to(scores.dtype), scores)
    k = torch.randint(-1, n + 3, (b,), generator=draw.generator()) if draw.choice(True, False) else n // 2
    mask = draw.choice(None, draw.mask(b, n))
    return (scores, k), {"mask": mask}


def test_equals_the_sort() -> None:
    check_kernel(hard_topk, case)


def test_ties_nan_and_infinities() -> None:
    scores = torch.tensor([[NAN, 1.0, -INF, 1.0, INF]])
    kept = [hard_topk(scores, k)[0].nonzero().flatten().tolist() for k in range(6)]
    assert kept == [[], [4], [1, 4], [1, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]


def test_padding_never_wins() -> None:
    scores = torch.tensor([[-INF, 9.0, NAN]])
    mask = torch.tensor([[True, False, True]])
    assert hard_topk(scores, 3, mask=mask).tolist() == [[True, False, True]]


@dtypes
def test_the_lowest_number_ranks_above_what_is_none(dtype: torch.dtype) -> None:
    scores = torch.tensor([[-INF, NAN, torch.finfo(dtype).min, 1.0, -INF]], dtype=dtype)
    assert hard_topk(scores, 2)[0].tolist() == [False, False, True, True, False]
    mask = torch.tensor([[False, True, True, True, True]])
    assert hard_topk(scores, 3, mask=mask)[0].tolist() == [False, True, True, True, False]


@dtypes
@pytest.mark.parametrize("vectors", [True, False])
def test_many_scores(dtype: torch.dtype, vectors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a size on numpy partitions them, where it is there; the choice is the same."""
    monkeypatch.setattr(order, "VECTORS", vectors)
    scores = torch.randn(8, 2**12, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert scores.numel() > MANY
    scores[0, ::3] = NAN
    mask = torch.arange(2**12) % torch.arange(2, 10)[:, None] > 0
    for k in (1, 400, 2**12 - 1, torch.arange(8) * 500):
        for real in (None, mask):
            got = hard_topk(scores, k, mask=real)
            assert torch.equal(got, reference.hard_topk(scores, k, mask=real))


def test_functionalized_and_exported() -> None:
    """Nothing but torch's own operations: an exported program runs where this package is not."""
    x = torch.randn(8, 2**12)
    want = hard_topk(x, 300)
    assert torch.equal(torch.func.functionalize(lambda a: hard_topk(a, 300))(x), want)

    class Module(torch.nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return hard_topk(a, 300)

    for strict in (True, False):
        program = torch.export.export(Module(), (x,), strict=strict)
        assert torch.equal(program.module()(x), want)
        assert "tokenops" not in str(program.graph)


def test_any_rank() -> None:
    scores = torch.randn(2, 3, 5)
    k = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert torch.equal(hard_topk(scores, k).sum(-1), k)
    assert torch.equal(hard_topk(scores[0, 0], 2), hard_topk(scores, 2)[0, 0])
    assert hard_topk(scores[:0], 2).shape == (0, 3, 5)
    assert hard_topk(scores[..., :0], 2).shape == (2, 3, 0)


@pytest.mark.parametrize(
    ("scores", "k", "mask"),
    [
        (torch.ones(2, 3, dtype=torch.long), 1, None),
        (torch.tensor(1.0), 1, None),
        (torch.ones(2, 3), 1.5, None),
        (torch.ones(2, 3), True, None),
        (torch.ones(2, 3), torch.tensor([1.0, 2.0]), None),
        (torch.ones(2, 3), 1, torch.ones(2, 2, dtype=torch.bool)),
        (torch.ones(2, 3), 1, torch.ones(2, 3)),
    ],
)
def test_bad_input(scores: Any, k: Any, mask: Any) -> None:
    with pytest.raises(TokenOpsError, match="hard_topk"):
        hard_topk(scores, k, mask=mask)
