"""The suites pass what is right, and catch what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor, nn

from tokenops import Selection, TokenOpsError
from tokenops.selectors import TopK
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer, feature_norm
from tokenops.testing import (
    check_assignment,
    check_kernel,
    check_relaxation,
    check_scorer,
    check_selection,
    check_selector,
)
from tokenops.testing.drawing import Draw, hold
from tokenops.tokenmap import Assignment


@pytest.fixture(autouse=True)
def _find_without_shrinking() -> Iterator[None]:
    before = settings.get_current_profile_name()
    settings.register_profile("find", settings(phases=[Phase.generate]))
    settings.load_profile("find")
    yield
    settings.load_profile(before)


def test_the_entries_run_every_law() -> None:
    check_scorer(LearnedScorer(8, hidden=3))
    check_selector(TopK(feature_norm, keep=3))


@pytest.mark.slow
def test_the_relaxation_entry_runs_every_law() -> None:
    check_relaxation(soft_topk)


def batch_mean(x: Tensor) -> Tensor:
    return x.float().norm(dim=-1) - x.float().norm(dim=-1).mean()


def half_out(x: Tensor) -> Tensor:
    return x.norm(dim=-1)


def leaks_padding(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    return (x * x.mean(1, keepdim=True)).sum(-1).float()


def by_position(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).float().expand(x.shape[:2])


def transposed(x: Tensor) -> Tensor:
    return x.float().sum(-1).T


def changes_x(x: Tensor) -> Tensor:
    return x.mul_(2).float().sum(-1)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.weight.float()).sum(-1)


SCORERS = (batch_mean, half_out, leaks_padding, by_position, transposed, changes_x, Unused())


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda s: getattr(s, "__name__", "Unused"))
def test_wrong_scorers_are_caught(scorer: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError, TokenOpsError)):
        check_scorer(scorer)


def scaled_softmax(scores: Tensor, k: Any, *, mask: Tensor | None = None) -> Tensor:
    return scores.softmax(-1) * torch.as_tensor(k)


def plain_sigmoid(scores: Tensor, k: Any, *, mask: Tensor | None = None) -> Tensor:
    return scores.sigmoid()


def bisected(scores: Tensor, k: Any, *, mask: Tensor | None = None) -> Tensor:
    """Right at unit scale, wrong elsewhere: a fixed bracket, and the dtype of the scores."""
    low, high = torch.full_like(scores[..., :1], -20), torch.full_like(scores[..., :1], 20)
    k = torch.as_tensor(k).expand(scores.shape[:-1])[..., None]
    for _ in range(40):
        middle = (low + high) / 2
        small = (scores + middle).sigmoid().sum(-1, keepdim=True) < k
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return (scores + low).sigmoid()


@pytest.mark.parametrize("relax", [scaled_softmax, plain_sigmoid, bisected], ids=lambda f: f.__name__)
def test_wrong_relaxations_are_caught(relax: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        check_relaxation(relax)


def first_half(x: Tensor, *, mask: Tensor | None = None) -> Selection:
    keep = torch.arange(x.shape[1]).expand(x.shape[:2]) < (x.shape[1] + 1) // 2
    return Selection.from_mask(keep)


def batch_threshold(x: Tensor, *, mask: Tensor | None = None) -> Selection:
    scores = x.float().norm(dim=-1)
    scores = scores if mask is None else scores.masked_fill(~mask, -1)
    return Selection.from_mask(scores > scores.clamp(min=0).mean())


@pytest.mark.parametrize("selector", [first_half, batch_threshold], ids=lambda f: f.__name__)
def test_wrong_selectors_are_caught(selector: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check_selector(selector)


def test_wrong_maps_are_caught() -> None:
    order = Selection(torch.tensor([[2, 0]]), torch.ones(1, 2, dtype=torch.bool), 3)
    twice = Selection(torch.tensor([[1, 1]]), torch.ones(1, 2, dtype=torch.bool), 3)
    for chosen in (order, twice):
        with pytest.raises(AssertionError):
            check_selection(chosen)
    fine = Selection(torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool), 3)
    check_selection(fine, counts=torch.tensor([2]))
    with pytest.raises(AssertionError, match="tokens must be kept"):
        check_selection(fine, counts=torch.tensor([1]))
    with pytest.raises(AssertionError, match="padding"):
        check_selection(fine, mask=torch.tensor([[True, True, False]]))
    stray = Assignment(torch.tensor([[0, 1]]), torch.ones(1, 2), 2, torch.tensor([[1, 0]]))
    with pytest.raises(AssertionError, match="own group"):
        check_assignment(stray, torch.randn(1, 2, 3, dtype=torch.float64))


def test_wrong_kernels_are_caught() -> None:
    def case(draw: Draw) -> Any:
        return (draw.normal(3),), {}

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def detached(x: Tensor) -> Tensor:
        return 2 * x.detach() + 0 * x

    check_kernel(double, case, reference=lambda x: x + x)
    wrong: tuple[Callable[..., Any], ...] = (lambda x: 3 * x, lambda x: (2 * x).double(), detached)
    for kernel in wrong:
        with pytest.raises(AssertionError):
            check_kernel(kernel, case, reference=double)


def test_kernels_see_the_memory_of_the_case() -> None:
    """Strides, and what lies between the numbers; the gradients are those of the numbers alone."""
    seen = []

    def case(draw: Draw) -> Any:
        buffer = torch.full((4, 6), float("nan"))
        buffer[:, ::2] = draw.normal(4, 3)
        return (buffer.t()[::2], torch.ones(2, 1).expand(2, 3)), {}

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.stride(), y.stride(), bool(x.as_strided((24,), (1,), 0).isnan().any())))
        return x.sum(0) + y.sum()

    check_kernel(kernel, case, reference=lambda x, y: x.sum(0) + y.sum())
    assert set(seen) == {((2, 6), (1, 0), True)}


def test_roundings_of_cancelled_terms_are_allowed_when_asked_for() -> None:
    def case(draw: Draw) -> Any:
        return (draw.normal(3).half(),), {}

    def cancelling(x: Tensor) -> Tensor:
        return 1e-3 + 0 * x

    check_kernel(cancelling, case, reference=lambda x: 0 * x, atol=0, terms=1)
    with pytest.raises(AssertionError):
        check_kernel(cancelling, case, reference=lambda x: 0 * x, atol=0)


def test_missing_hypothesis_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(TokenOpsError, match=r"tokenops\[dev\]"):
        hold(lambda draw: None)


def test_unknown_signals_ask_for_a_maker() -> None:
    def needy(x: Tensor, *, moon: Tensor) -> Tensor:
        return x.float().sum(-1) * moon

    with pytest.raises(TokenOpsError, match="signals="):
        check_scorer(needy)
    check_scorer(needy, signals=lambda name, b, n: torch.ones(b, n))
