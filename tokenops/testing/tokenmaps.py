"""The laws of Selection and Assignment, for any value a component returns."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.testing.drawing import assert_close
from tokenops.tokenmap import Assignment, Selection


def check_selection(chosen: Selection, mask: Tensor | None = None, counts: Tensor | None = None) -> None:
    """Indices unique, ascending and in range; exactly ``counts`` valid; none of them padding.

    Args:
        chosen: the value to check.
        mask: (b n) False for padding, all real by default.
        counts: (b) the tokens each row must keep, anything by default.

    Raises:
        AssertionError: a law is broken.

    >>> keep = torch.tensor([[True, False, True], [False, False, True]])
    >>> check_selection(Selection.from_mask(keep), counts=torch.tensor([2, 1]))
    >>> check_selection(Selection.from_mask(keep), counts=torch.tensor([2, 2]))
    Traceback (most recent call last):
    ...
    AssertionError: [2, 2] tokens must be kept
    """
    b, k = chosen.index.shape
    assert chosen.valid.shape == (b, k), "valid must be (b k)"
    assert ((chosen.index >= 0) & (chosen.index < max(1, chosen.n))).all(), "index must be in [0, n)"
    assert chosen.mask.shape == (b, chosen.n), "mask must be (b n)"
    for row, valid in zip(chosen.index, chosen.valid, strict=True):
        kept = row[valid]
        assert (kept[1:] > kept[:-1]).all(), "valid indices must ascend without repetition"
    assert torch.equal(chosen.mask.sum(1), chosen.counts), "mask and valid must agree"
    assert chosen.k == (int(chosen.counts.max()) if b else chosen.k), "k must be the largest count"
    if mask is not None:
        assert not (chosen.mask & ~mask).any(), "padding must not be kept"
    if counts is not None:
        assert torch.equal(chosen.counts, counts), f"{counts.tolist()} tokens must be kept"
    for name, value in (("gate", chosen.gate), ("scores", chosen.scores)):
        assert value is None or value.shape == (b, chosen.n), f"{name} must be (b n)"
    if chosen.gate is None:
        _check_selection_maps(chosen)


def _check_selection_maps(chosen: Selection) -> None:
    b, k = chosen.index.shape
    x = torch.arange(b * chosen.n * 2, dtype=torch.float32).view(b, chosen.n, 2)
    y = -1 - torch.arange(b * k * 2, dtype=torch.float32).view(b, k, 2)
    back = chosen.reduce(chosen.lift(y, into=x))
    assert torch.equal(back[chosen.valid], y[chosen.valid]), "reduce must undo lift on valid slots"
    assert torch.equal(chosen.lift(chosen.reduce(x), into=x), x), "lift must undo reduce"
    lifted = chosen.lift(y, into=x)
    assert torch.equal(lifted[~chosen.mask], x[~chosen.mask]), "lift must leave the rest as it is"


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight.reshape(*weight.shape, *(1,) * (x.ndim - 2))).sum(1)


def check_assignment(merged: Assignment, x: Tensor) -> None:
    """Mass and weighted features are conserved, lift after reduce projects, anchors lie in their group.

    Args:
        merged: the value to check, with positive weights.
        x: (b n ...) features in float64.

    Raises:
        AssertionError: a law is broken.

    >>> merged = Assignment.joining(torch.tensor([[0, 0, 2]]))
    >>> check_assignment(merged, torch.randn(1, 3, 4, dtype=torch.float64))
    >>> wrong = Assignment(merged.group, merged.weight, 2, torch.tensor([[0, 1]]))
    >>> check_assignment(wrong, torch.randn(1, 3, 4, dtype=torch.float64))
    Traceback (most recent call last):
    ...
    AssertionError: an anchor must lie in its own group
    """
    inside, valid = merged.group >= 0, merged.valid
    assert (merged.group < merged.k).all(), "group must be below k"
    assert (merged.anchor < max(1, merged.n)).all(), "anchor must be below n"
    weight = merged.weight.double() * inside
    reduced, mass = merged.reduce(x), merged.mass.double()
    scale = 1e-6 * max(1.0, float((weight.sum(1).max() * x.abs().max()) if x.numel() else 0))
    assert_close((mass * valid).sum(1), weight.sum(1), scale)
    assert_close(_weighted(reduced, mass), _weighted(x, weight), scale)
    once = merged.lift(reduced, into=x)
    assert_close(merged.lift(merged.reduce(once), into=x), once, scale)
    assert torch.equal(once[~inside], x[~inside]), "tokens left out must keep their value"
    for group, anchor in zip(merged.group, merged.anchor, strict=True):
        slots = torch.arange(merged.k, device=group.device)[anchor >= 0]
        assert torch.equal(group[anchor[anchor >= 0]], slots), "an anchor must lie in its own group"
        assert set(group[group >= 0].tolist()) <= set(slots.tolist()), "a group must have an anchor"
