"""What every merger promises: ``(x (b n d), selection, *, mask, <signals>) -> Assignment``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenops.budget import keep_counts
from tokenops.errors import TokenOpsError
from tokenops.shapes import check_shapes
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, hold, signal
from tokenops.testing.tokenmaps import check_assignment
from tokenops.tokenmap import Assignment, Selection

Maker = Callable[[str, int, int], Tensor]
WIDTH = 8


class Case:
    """Features, what is real, a selection among it, and signals; now and then also the optional ones."""

    def __init__(self, merger: Any, draw: Draw, maker: Maker) -> None:
        b, n, dice = draw.integer(1, 4), draw.integer(1, 12), draw.generator()
        self.x, self.mask = draw.normal(b, n, WIDTH), draw.mask(b, n)
        share = torch.rand(b, 1, generator=dice)
        self.chosen = self.mask & (torch.rand(b, n, generator=dice) < share)
        every = draw.choice(False, True)
        wanted = [name for name, must in needs(merger).items() if name != "mask" and (must or every)]
        self.signals = {name: maker(name, b, n) for name in wanted}

    @property
    def selection(self) -> Selection:
        """The selected tokens."""
        return Selection.from_mask(self.chosen)

    def merge(self, merger: Any, x: Tensor | None = None) -> Assignment:
        """What the merger says about these inputs, or other features in their place."""
        return merger(self.x if x is None else x, self.selection, mask=self.mask, **self.signals)

    def row(self, merger: Any, i: int, at: Tensor) -> Assignment:
        """What the merger says about some tokens of one row, which has no padding then."""
        few = {name: value[i : i + 1, at] for name, value in self.signals.items()}
        return merger(self.x[i : i + 1, at], Selection.from_mask(self.chosen[i : i + 1, at]), **few)


def home_of(merged: Assignment) -> Tensor:
    """(b n) the anchor each token joined, -1 for tokens that leave."""
    if not merged.k:
        return torch.full_like(merged.group, -1)
    return torch.where(merged.group >= 0, merged.anchor.gather(1, merged.group.clamp(min=0)), -1)


def check_partition(merger: Any, merged: Assignment, mask: Tensor, chosen: Tensor) -> None:
    """Every real token in one group, or (with nothing to join) the selected ones alone; exact counts."""
    inside = merged.group >= 0
    assert merged.group.shape == mask.shape, "group must be (b n)"
    assert not (inside & ~mask).any(), "padding must be in no group"
    whole, alone = (inside == mask).all(1), (inside == chosen).all(1)
    assert (whole | alone).all(), "every real token must be in a group"
    groups = merged.valid.sum(1)
    assert (groups == chosen.sum(1))[~whole].all(), "where tokens leave, the selected ones must stay alone"
    keep, wanted = getattr(merger, "keep", None), chosen.sum(1)
    if keep is not None:
        wanted = torch.maximum(wanted, keep_counts(keep, mask.sum(1)))
    assert torch.equal(groups, wanted), f"{wanted.tolist()} groups must remain, not {groups.tolist()}"
    for row in merged.anchor:
        at = row[row >= 0]
        assert (at[1:] > at[:-1]).all(), "anchors must ascend without repetition"
    assert (merged.weight[inside] > 0).all(), "weights must be positive"


def partition(merger: Any, draw: Draw, maker: Maker) -> None:
    """Groups partition the real tokens, mass is conserved, as annotated; the inputs stay as they are."""
    case = Case(merger, draw, maker)
    before = case.x.clone()
    merged = case.merge(merger)
    check_partition(merger, merged, case.mask, case.chosen)
    check_assignment(merged, draw.normal(*case.mask.shape, 3, dtype=torch.float64))
    call = getattr(merger, "forward", merger)
    given = {"x": case.x, "selection": case.selection, "mask": case.mask, **case.signals}
    check_shapes(call, given, merged)
    assert torch.equal(case.x, before), "x must not change"
    assert torch.equal(home_of(case.merge(merger)), home_of(merged)), "two calls must agree"


def equal_and_zero_vectors(merger: Any, draw: Draw, maker: Maker) -> None:
    """Repeated, zero and huge vectors are tokens like others."""
    case = Case(merger, draw, maker)
    b, n = case.mask.shape
    kind = torch.randint(3, (b, n, 1), generator=draw.generator())
    x = case.x[:, :1] * kind * draw.choice(1.0, 1e30, 1e-30)
    check_partition(merger, case.merge(merger, x), case.mask, case.chosen)


def everything_selected(merger: Any, draw: Draw, maker: Maker) -> None:
    """With all tokens selected, each stays alone and reduce is the identity."""
    case = Case(merger, draw, maker)
    case.chosen = case.mask
    merged = case.merge(merger)
    place = torch.arange(case.mask.shape[1]).expand(case.mask.shape)
    assert torch.equal(home_of(merged), torch.where(case.mask, place, -1)), "each token must stay alone"
    assert torch.equal(merged.reduce(case.x)[merged.valid], case.x[case.mask]), "nothing may change"


def row_independent(merger: Any, draw: Draw, maker: Maker) -> None:
    """A row merges alone, without its padding, as it does in a batch."""
    case = Case(merger, draw, maker)
    together = home_of(case.merge(merger))
    for i, real in enumerate(case.mask):
        alone, at = home_of(case.row(merger, i, real))[0], real.nonzero().flatten()
        expected = torch.where(alone >= 0, at[alone.clamp(min=0)], -1) if len(at) else alone
        assert torch.equal(together[i, real], expected), "a row must merge alone as it does in a batch"


def padding_inert(merger: Any, draw: Draw, maker: Maker) -> None:
    """Nothing stored at padding changes groups or features."""
    case = Case(merger, draw, maker)
    filler = draw.choice(float("nan"), 1e30, float("inf"))
    dirty = case.x.masked_fill(~case.mask[..., None], filler)
    clean, other = case.merge(merger), case.merge(merger, dirty)
    assert torch.equal(home_of(clean), home_of(other)), "padding must not change the groups"
    same = clean.reduce(case.x)[clean.valid], other.reduce(dirty)[other.valid]
    assert torch.equal(*same), "padding must not change the features"


def nan_stays_in_its_row(merger: Any, draw: Draw, maker: Maker) -> None:
    """NaN features leave the counts, and every other row, as they are."""
    case = Case(merger, draw, maker)
    broken = case.x.clone()
    broken[0, 0] = float("nan")
    merged = case.merge(merger, broken)
    check_partition(merger, merged, case.mask, case.chosen)
    assert torch.equal(home_of(merged)[1:], home_of(case.merge(merger))[1:]), "NaN must stay in its row"


def permutation_equivariant(merger: Any, draw: Draw, maker: Maker) -> None:
    """Tokens in another order join the same anchors, unless the merger is ``positional``."""
    if getattr(merger, "positional", False) or "grid" in needs(merger):
        return
    case = Case(merger, draw, maker)
    home, order = home_of(case.merge(merger)), draw.permutation(case.mask.shape[1])
    case.x, case.mask, case.chosen = case.x[:, order], case.mask[:, order], case.chosen[:, order]
    case.signals = {name: value[:, order] for name, value in case.signals.items()}
    moved = home_of(case.merge(merger))
    back = torch.where(moved >= 0, order[moved.clamp(min=0)], -1)
    assert torch.equal(back, home[:, order]), "another order must not change who joins whom"


def half_precision(merger: Any, draw: Draw, maker: Maker) -> None:
    """Half-precision features, and autocast, give the groups of the same numbers in float32."""
    case = Case(merger, draw, maker)
    few = case.x.to(draw.choice(torch.bfloat16, torch.float16))
    wide, narrow = case.merge(merger, few.float()), case.merge(merger, few)
    assert torch.equal(home_of(wide), home_of(narrow)), "half precision must not change the groups"
    assert narrow.reduce(few).dtype == few.dtype, "reduce must keep the dtype"
    plain = case.merge(merger)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(home_of(case.merge(merger)), home_of(plain)), "nor may autocast"


def gradients(merger: Any, draw: Draw, maker: Maker) -> None:
    """Features get the gradient of a weighted mean: of each group 1 in all, of what left none."""
    case = Case(merger, draw, maker)
    x = (case.x * draw.choice(1.0, 0.0)).requires_grad_()
    merged = case.merge(merger, x)
    (merged.reduce(x) * merged.valid[..., None]).sum().backward()
    assert x.grad is not None, "reduce must be differentiable"
    inside, total = merged.group >= 0, x.grad.sum((1, 2)) / WIDTH
    assert not x.grad[~inside].any(), "what is in no group must get no gradient"
    assert (x.grad[inside] > 0).all(), "what is in a group must get some"
    torch.testing.assert_close(total, merged.valid.sum(1).float())


def empty(merger: Any, draw: Draw, maker: Maker) -> None:
    """No rows, rows without tokens, rows without a selection."""
    case = Case(merger, draw, maker)
    n = draw.integer(1, 5)
    for b, size in ((0, n), (2, 0)):
        none = {name: maker(name, b, size) for name in case.signals}
        bare = Selection.from_mask(torch.zeros(b, size, dtype=torch.bool))
        merged = merger(torch.zeros(b, size, WIDTH), bare, **none)
        assert merged.group.shape == (b, size), "no tokens in, no tokens out"
        assert not merged.valid.any(), "no tokens in, no groups out"
    case.chosen = torch.zeros_like(case.mask)
    check_partition(merger, case.merge(merger), case.mask, case.chosen)


def refuses_bad_input(merger: Any, draw: Draw, maker: Maker) -> None:
    """Features of another rank or dtype, a selection or mask of other tokens: TokenOpsError."""
    case = Case(merger, draw, maker)
    x, selection, mask, signals = case.x, case.selection, case.mask, case.signals
    more = Selection.from_mask(torch.cat([case.chosen, case.chosen], 1))
    wrong: list[Callable[[], Assignment]] = [
        lambda: merger(x[0], selection, mask=mask, **signals),
        lambda: merger(x.long(), selection, mask=mask, **signals),
        lambda: merger(x, more, mask=mask, **signals),
        lambda: merger(x, case.chosen, mask=mask, **signals),
        lambda: merger(x, selection, mask=mask[:, :-1], **signals),
        lambda: merger(x, selection, mask=mask.float(), **signals),
    ]
    for call in wrong:
        try:
            call()
        except TokenOpsError:
            continue
        raise AssertionError("bad input must raise TokenOpsError")


LAWS: tuple[Law, ...] = (
    partition,
    equal_and_zero_vectors,
    everything_selected,
    row_independent,
    padding_inert,
    nan_stays_in_its_row,
    permutation_equivariant,
    half_precision,
    gradients,
    empty,
    refuses_bad_input,
)


def check_merger(merger: Callable[..., Assignment], *, signals: Maker = signal) -> None:
    """Hold a merger to every law; ``signals(name, b, n)`` makes the signals it takes.

    As many groups must remain as tokens are selected, or as many as an attribute ``keep`` of the merger says
    if that is more. A merger that looks at the order of the tokens says so with ``positional = True``.

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed, or a signal is unknown to ``signals``.

    >>> from tokenops.selectors.mergers import nearest_kept
    >>> check_merger(nearest_kept)
    """
    for law in LAWS:
        hold(law, merger, maker=signals)
