"""What every router promises: ``split(x, *, layer, units, mask, alive) -> (Selection, rows)``, ``merge``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenops.budget import keep_count
from tokenops.errors import TokenOpsError
from tokenops.routers.units import Units
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, hold, signal
from tokenops.testing.tokenmaps import check_selection
from tokenops.tokenmap import Selection

Maker = Callable[[str, int, int], Tensor]
WIDTH = 8
SUPPLIED = {"mask", "visual"}


class Case:
    """Sequences of text and images, ragged, with padding anywhere and tokens that left earlier."""

    def __init__(self, router: Any, draw: Draw, maker: Maker) -> None:
        b, n, dice = draw.integer(1, 3), draw.integer(1, 14), draw.generator()
        self.layer = draw.integer(0, 5)
        self.x, self.mask = draw.normal(b, n, WIDTH), draw.mask(b, n)
        # runs of text (even) and of images (odd), numbered through the batch
        run = torch.randint(0, 3, (b, n), generator=dice).eq(0).cumsum(1)
        unit = torch.where(run % 2 == 1, run // 2 + n * torch.arange(b)[:, None], -1)
        self.unit = torch.where(self.mask & (unit >= 0), unit, -1)
        gone = (torch.rand(b, n, generator=dice) < 0.3) & (self.unit >= 0)
        self.alive = ~gone if draw.choice(False, True) else torch.ones_like(gone)
        wanted = [name for name, must in needs(router).items() if must and name not in SUPPLIED]
        self.signals = {name: maker(name, b, n) for name in wanted}

    @property
    def units(self) -> Units:
        """The images."""
        return Units.of(self.unit)

    def split(self, router: Any, x: Tensor | None = None, **changes: Any) -> tuple[Selection, Tensor]:
        """What the router sends through the layer."""
        given = {"units": self.units, "mask": self.mask, "alive": self.alive, **self.signals, **changes}
        return router.split(self.x if x is None else x, layer=self.layer, **given)

    def row(self, router: Any, i: int, at: Tensor) -> Selection:
        """What it sends of some tokens of one row, alone."""
        few = {name: value[i : i + 1, at] for name, value in self.signals.items()}
        few |= {"units": Units.of(self.unit[i : i + 1, at]), "alive": self.alive[i : i + 1, at]}
        return router.split(self.x[i : i + 1, at], layer=self.layer, **few)[0]


def text_always_runs(router: Any, draw: Draw, maker: Maker) -> None:
    """All real text runs, no padding and nothing that left; in ascending order, without repetition."""
    case = Case(router, draw, maker)
    chosen, _ = case.split(router)
    check_selection(chosen, mask=case.mask & case.alive)
    text = case.mask & (case.unit < 0) & case.alive
    assert bool((chosen.mask | ~text).all()), "all text must run"


def exact_counts(router: Any, draw: Draw, maker: Maker) -> None:
    """Of every image as many tokens run as the schedule says, or all that are left."""
    case = Case(router, draw, maker)
    chosen, _ = case.split(router)
    keep = router.schedule(case.layer)
    for number in case.unit[case.unit >= 0].unique().tolist():
        inside = case.unit == number
        left, size = int((inside & case.alive).sum()), int(inside.sum())
        wanted = left if keep is None else min(left, keep_count(keep, size, who="check_router"))
        assert int((inside & chosen.mask).sum()) == wanted, f"{wanted} tokens of each image must run"


def split_gathers(router: Any, draw: Draw, maker: Maker) -> None:
    """The rows are those of the tokens that run; the inputs stay as they are; two calls agree."""
    case = Case(router, draw, maker)
    before = case.x.clone()
    torch.manual_seed(0)
    chosen, inside = case.split(router)
    assert torch.equal(inside, chosen.reduce(case.x)), "split must return the rows that run"
    assert torch.equal(case.x, before), "x must not change"
    torch.manual_seed(0)
    assert torch.equal(case.split(router)[0].mask, chosen.mask), "two calls must agree"


def merge_restores(router: Any, draw: Draw, maker: Maker) -> None:
    """merge(split(x)) is x; what ran is put back at its place, what did not stays as it was."""
    case = Case(router, draw, maker)
    chosen, inside = case.split(router)
    assert torch.equal(router.merge(inside, chosen, case.x), case.x), "merge must undo split"
    both = router.merge(2 * inside + 1, chosen, case.x)
    expected = torch.where(chosen.mask[..., None], 2 * case.x + 1, case.x)
    assert torch.equal(both, expected), "merge must keep the tokens that did not run"


def row_independent(router: Any, draw: Draw, maker: Maker) -> None:
    """A row alone, without its padding, sends the same tokens."""
    case = Case(router, draw, maker)
    chosen, _ = case.split(router)
    for i, real in enumerate(case.mask):
        if bool(real.any()):
            alone = case.row(router, i, real).mask[0]
            assert torch.equal(chosen.mask[i, real], alone), "a row must not depend on its batch"


def image_independent(router: Any, draw: Draw, maker: Maker) -> None:
    """Among equal scores of its own, an image keeps as many whatever the others hold."""
    case = Case(router, draw, maker)
    chosen, _ = case.split(router)
    numbers = case.unit[case.unit >= 0].unique().tolist()
    if not numbers or set(needs(router)) - SUPPLIED:
        return
    others = (case.unit >= 0) & (case.unit != numbers[0])
    moved, _ = case.split(router, case.x.masked_fill(others[..., None], 100.0))
    first = case.unit == numbers[0]
    assert int((moved.mask & first).sum()) == int((chosen.mask & first).sum()), "budgets are per image"


def padding_inert(router: Any, draw: Draw, maker: Maker) -> None:
    """Nothing stored at padding changes what runs."""
    case = Case(router, draw, maker)
    filler = draw.choice(float("nan"), 1e30, float("inf"))
    dirty = case.x.masked_fill(~case.mask[..., None], filler)
    assert torch.equal(case.split(router)[0].mask, case.split(router, dirty)[0].mask), "padding must be inert"


def gradients(router: Any, draw: Draw, maker: Maker) -> None:
    """Gradients flow through both streams: once through the layer, or past it."""
    case = Case(router, draw, maker)
    x = case.x.clone().requires_grad_()
    chosen, inside = case.split(router, x)
    router.merge(3 * inside, chosen, x).sum().backward()
    assert x.grad is not None, "split and merge must be differentiable"
    expected = torch.where(chosen.mask, 3.0, 1.0)[..., None].expand_as(x)
    torch.testing.assert_close(x.grad, expected)


def no_images(router: Any, draw: Draw, maker: Maker) -> None:
    """Rows of text, and rows of padding, run as they are."""
    case = Case(router, draw, maker)
    case.unit = torch.full_like(case.unit, -1)
    case.alive = torch.ones_like(case.alive)
    assert torch.equal(case.split(router)[0].mask, case.mask), "text alone must run whole"


def refuses_bad_input(router: Any, draw: Draw, maker: Maker) -> None:
    """Units of other sequences are refused."""
    case = Case(router, draw, maker)
    try:
        case.split(
            router, units=Units.of(torch.cat([case.unit, case.unit.new_full((len(case.x), 1), -1)], 1))
        )
    except TokenOpsError:
        return
    raise AssertionError("units of other sequences must raise TokenOpsError")


LAWS: tuple[Law, ...] = (
    text_always_runs,
    exact_counts,
    split_gathers,
    merge_restores,
    row_independent,
    image_independent,
    padding_inert,
    gradients,
    no_images,
    refuses_bad_input,
)


def check_router(router: Any, *, signals: Maker = signal) -> None:
    """Hold a router to every law; ``signals(name, b, n)`` makes the signals its scorers take.

    A router has ``split(x, *, layer, units, mask, alive, <signals>)``, ``merge(ys, selection, x)`` and
    ``schedule``, which gives the keep of a layer.

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed, or a signal is unknown to ``signals``.

    >>> from tokenops.routers import Route
    >>> from tokenops.selectors.scorers import feature_norm
    >>> check_router(Route(feature_norm, keep=0.5))
    """
    for law in LAWS:
        hold(law, router, maker=signals)
