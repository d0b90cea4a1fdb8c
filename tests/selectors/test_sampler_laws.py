"""The laws of samplers pass what is right, and each catches what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.relaxations.gumbel import gumbel_topk
from tokenops.selectors.relaxations.noise import draw_noise
from tokenops.testing import samplers
from tokenops.testing.drawing import Law, hold
from tokenops.testing.inclusion import follows, plackett_luce
from tokenops.testing.samplers import check_sampler, seeded


def _noisy(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return x.float() + draw_noise("gumbel", x, generator)


def _plain(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores, k, mask=mask, generator=generator)


def global_draw(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores, k, mask=mask)


def same_draw(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores, k, mask=mask, generator=seeded(0))


def one_noise(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return soft_topk(
        scores + draw_noise("gumbel", scores[0] if scores.ndim > 1 else scores, generator), k, mask=mask
    )


def with_replacement(scores: Tensor, k: int, *, mask: Any = None, generator: Any = None) -> Tensor:
    rows = torch.multinomial(scores.softmax(-1), int(k), replacement=True, generator=generator)
    return torch.zeros_like(scores).scatter(-1, rows, 1.0)


def each_alone(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    p = soft_topk(scores, k, mask=mask)
    return torch.bernoulli(p.detach(), generator=generator) + p - p.detach()


def pads(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    m = soft_topk(_noisy(scores, generator), k)
    return m if mask is None else m * mask


def coupled(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    largest = scores.abs().max() if scores.numel() else 1.0
    return soft_topk(_noisy(scores / largest, generator), k, mask=mask)


def by_place(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return soft_topk(_noisy(scores, generator) - torch.arange(scores.shape[-1]) / 2, k, mask=mask)


def at_least_one(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores, max(k, 1) if isinstance(k, int) else k, mask=mask, generator=generator)


def loose(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    m = gumbel_topk(scores, k, mask=mask, generator=generator)
    return m + (scores - scores.detach())


def backwards(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    m = gumbel_topk(scores, k, mask=mask, generator=generator)
    return 2 * m.detach() - m


def coarse(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores, k, mask=mask, generator=generator).to(scores.dtype)


def flat_only(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores.view(len(scores), -1), k, mask=mask, generator=generator)


def forgiving(scores: Tensor, k: Any, *, mask: Any = None, generator: Any = None) -> Tensor:
    return gumbel_topk(scores.float(), 1 if k is None else k, mask=mask, generator=generator)


BROKEN = [
    (samplers.a_mask, each_alone),
    (samplers.a_mask, with_replacement),
    (samplers.ones_and_zeros, _plain),
    (samplers.ones_and_zeros, each_alone),
    (samplers.only_the_generator, global_draw),
    (samplers.only_the_generator, same_draw),
    (samplers.rows_differ, one_noise),
    (samplers.row_independent, coupled),
    (samplers.unordered, by_place),
    (samplers.padding_inert, pads),
    (samplers.limits, at_least_one),
    (samplers.balanced_gradients, loose),
    (samplers.learns, backwards),
    (samplers.half_precision, coarse),
    (samplers.any_layout, flat_only),
    (samplers.refuses, forgiving),
]


@pytest.fixture
def _find_without_shrinking() -> Iterator[None]:
    before = settings.get_current_profile_name()
    settings.register_profile("find", settings(phases=[Phase.generate]))
    settings.load_profile("find")
    yield
    settings.load_profile(before)


@pytest.mark.usefixtures("_find_without_shrinking")
@pytest.mark.parametrize(("law", "sampler"), BROKEN, ids=lambda f: f.__name__)
def test_laws_catch(law: Law, sampler: Any) -> None:
    with pytest.raises((AssertionError, TypeError, RuntimeError, IndexError, TokenOpsError)):
        hold(law, sampler)


def soft(scores: Tensor, k: int) -> Tensor:
    return soft_topk(scores, k)


def test_means_catch_the_wrong_noise() -> None:
    logistic = partial(soft_topk, hard=True, noise="logistic")
    for mean in (plackett_luce, soft):
        with pytest.raises(AssertionError, match="scores"):
            follows(logistic, mean)


def test_every_law_is_seen_to_fail() -> None:
    assert {law for law, _ in BROKEN} == {*samplers.LAWS, samplers.ones_and_zeros}


def test_the_entry_runs_every_law() -> None:
    check_sampler(partial(gumbel_topk, hard=True), hard=True, mean=plackett_luce)
    with pytest.raises(AssertionError):
        check_sampler(partial(gumbel_topk, hard=True), mean=soft)
