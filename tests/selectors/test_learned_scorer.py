"""The learned scorer in closed form equals the N×N form it replaces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.testing.drawing import Draw, assert_close, hold


def plain(scorer: LearnedScorer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """All queries against all keys, then the mean over keys."""
    q, k = scorer.q_proj(x), scorer.k_proj(x)
    scores = q @ k.transpose(1, 2) / scorer.hidden**0.5
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    total = scores.masked_fill(~mask[:, None], 0.0).sum(-1)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).masked_fill(~mask, 0.0)


def trained(dim: int, hidden: int | None = None, std: float = 1.0) -> LearnedScorer:
    scorer = LearnedScorer(dim, hidden)
    for parameter in scorer.parameters():
        nn.init.normal_(parameter, std=std)
    return scorer


def test_equals_the_plain_form_with_gradients() -> None:
    def law(draw: Draw) -> None:
        dim, hidden = draw.integer(1, 9), draw.integer(1, 5)
        b, n = draw.integer(0, 3), draw.integer(0, 7)
        scorer = trained(dim, hidden).double()
        x = draw.normal(b, n, dim, dtype=torch.float64).requires_grad_()
        mask = draw.choice(None, draw.mask(b, n))
        weight = draw.normal(b, n, dtype=torch.float64)
        results = []
        for scores in (scorer(x, mask=mask), plain(scorer, x, mask)):
            leaves = [x, *scorer.parameters()]
            gradients = torch.autograd.grad((scores * weight).sum(), leaves, allow_unused=True)
            results.append([scores.detach(), *(torch.zeros(()) if g is None else g for g in gradients)])
        for got, expected in zip(*results, strict=True):
            size = float(expected.abs().max()) if expected.numel() else 0.0
            assert_close(got, expected.expand_as(got), 1e-12 * max(1.0, size))

    hold(law)


def test_derivatives_of_every_order() -> None:
    scorer = trained(5, 3).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    assert torch.autograd.gradcheck(lambda x: scorer(x, mask=mask), (x,))
    assert torch.autograd.gradgradcheck(lambda x: scorer(x, mask=mask), (x,))


def test_segments_are_images_on_their_own() -> None:
    scorer = trained(6)
    x = torch.randn(2, 9, 6)
    segments = torch.tensor([[7, 7, 2, 2, 2, 2, -1, -1, 9], [0, 1, 0, 1, 0, 1, 0, 1, 0]])
    scores = scorer(x, segments=segments)
    for row in range(2):
        for image in segments[row].unique():
            at = segments[row] == image
            alone = torch.zeros(1, int(at.sum())) if image < 0 else scorer(x[row : row + 1, at])
            assert_close(scores[row, at], alone[0], 1e-5)
    mask = torch.rand(2, 9) < 0.7
    both = scorer(x, segments=segments, mask=mask)
    assert_close(both, scorer(x, segments=segments.masked_fill(~mask, -1)), 0)


def test_one_segment_is_the_row() -> None:
    scorer, x = trained(6), torch.randn(2, 5, 6)
    assert_close(scorer(x, segments=torch.zeros(2, 5, dtype=torch.long)), scorer(x), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("everything", [True, False])
def test_half_precision_features_are_summed_in_float32(dtype: torch.dtype, everything: bool) -> None:
    scorer = trained(64, std=0.1)
    x = (torch.randn(1, 1000, 64) + 0.5).to(dtype)
    half = copy.deepcopy(scorer).to(dtype) if everything else scorer
    with torch.no_grad():
        scores, exact = half(x), plain(copy.deepcopy(half).double(), x.double())
    assert scores.dtype == torch.float32
    assert float((scores - exact).abs().max() / exact.std()) < 2e-5
    assert len(scores.unique()) > 990


def test_half_precision_gradients() -> None:
    scorer = trained(16, std=0.3)
    x = torch.randn(2, 40, 16).bfloat16().requires_grad_()
    mask = torch.rand(2, 40) < 0.8
    weight = torch.randn(2, 40)
    (scorer(x, mask=mask) * weight).sum().backward()
    wide = copy.deepcopy(scorer).double()
    y = x.detach().double().requires_grad_()
    (plain(wide, y, mask) * weight).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert_close(x.grad, y.grad, 4e-3 * float(y.grad.abs().max()))
    for got, expected in zip(scorer.parameters(), wide.parameters(), strict=True):
        assert got.grad is not None
        assert expected.grad is not None
        assert_close(got.grad, expected.grad, 1e-4 * float(expected.grad.abs().max()) + 1e-5)


def test_memory_grows_with_tokens_only() -> None:
    """Nothing as large as the features, or as n times n, is kept for the backward pass."""
    scorer, sizes = trained(32), []
    x = torch.randn(1, 500, 32).bfloat16()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scorer(x).sum().backward()
    assert max(sizes) <= 32 * 16


def test_initialisation() -> None:
    scorer = LearnedScorer(3584)
    assert scorer.hidden == 1792
    assert sum(p.numel() for p in scorer.parameters()) == 12_848_640
    assert sorted(scorer.state_dict()) == ["k_proj.bias", "k_proj.weight", "q_proj.bias", "q_proj.weight"]
    for proj in (scorer.q_proj, scorer.k_proj):
        assert float(proj.weight.detach().std()) == pytest.approx(1e-4, rel=0.01)
        assert not proj.bias.any()


def test_trains_through_the_soft_topk() -> None:
    """From its tiny initial weights, the scorer learns to keep the tokens that matter."""
    scorer = LearnedScorer(8)
    x = torch.randn(4, 20, 8)
    wanted = x[..., 0] > 0.5
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.05)
    losses = []
    for _ in range(80):
        gate = soft_topk(scorer(x), wanted.sum(1), temperature=0.5)
        loss = -(gate.clamp(1e-6) * wanted).sum() / wanted.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("sizes", [(0,), (-1,), (2.0,), (True,), (8, 0), (8, 1.5), (1,)])
def test_bad_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(TokenOpsError, match="LearnedScorer"):
        LearnedScorer(*sizes)


def test_bad_input() -> None:
    scorer, x = LearnedScorer(8), torch.zeros(2, 3, 8)
    calls = [
        lambda: scorer(x[..., :7]),
        lambda: scorer(x[0]),
        lambda: scorer(x.long()),
        lambda: scorer(x.to("meta")),
        lambda: scorer(x, mask=torch.ones(2, 2, dtype=torch.bool)),
        lambda: scorer(x, mask=torch.ones(2, 3)),
        lambda: scorer(x, segments=torch.zeros(2, 3)),
        lambda: scorer(x, segments=torch.zeros(3, dtype=torch.long)),
    ]
    for call in calls:
        with pytest.raises(TokenOpsError, match="LearnedScorer"):
            call()


def test_repr_is_code() -> None:
    assert repr(LearnedScorer(64, hidden=32)) == repr(LearnedScorer(64)) == "LearnedScorer(64, hidden=32)"


def test_compiles_and_deepcopies() -> None:
    scorer, x = trained(8), torch.randn(2, 5, 8)
    mask = torch.rand(2, 5) < 0.7
    compiled = torch.compile(scorer, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, mask=mask), scorer(x, mask=mask), 1e-5)
    assert_close(copy.deepcopy(scorer)(x), scorer(x), 0)
