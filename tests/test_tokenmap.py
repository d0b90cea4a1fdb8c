"""The laws of Selection and Assignment, on ragged rows, any trailing shape and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops import Assignment, Selection
from tokenops.testing import check_assignment, check_selection
from tokenops.testing.drawing import Draw, assert_close, hold

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.long, torch.bool)


def draw_selection(draw: Draw) -> Selection:
    b, n = draw.integer(0, 4), draw.integer(0, 9)
    return Selection.from_mask(draw.mask(b, n))


def draw_features(draw: Draw, b: int, n: int) -> Tensor:
    trailing = draw.choice((), (3,), (2, 2), (0,))
    return (10 * draw.normal(b, n, *trailing)).to(draw.choice(*DTYPES))


def draw_assignment(draw: Draw) -> Assignment:
    """Ragged groups: padding, rows without groups, slots without a group."""
    b, n, k = draw.integer(0, 3), draw.integer(0, 9), draw.integer(1, 4)
    g = draw.generator()
    group = torch.where(draw.mask(b, n), torch.randint(k, (b, n), generator=g), -1)
    anchor = torch.full((b, k), -1)
    for i in range(b):
        for j in range(n):
            if group[i, j] >= 0 and (anchor[i, group[i, j]] < 0 or torch.rand((), generator=g) < 0.5):
                anchor[i, group[i, j]] = j
    return Assignment(group, torch.rand(b, n, generator=g) + 0.1, k, anchor)


def test_selection_laws() -> None:
    def law(draw: Draw) -> None:
        keep = draw.mask(draw.integer(0, 4), draw.integer(0, 9))
        chosen = Selection.from_mask(keep)
        check_selection(chosen, counts=keep.sum(1))
        assert torch.equal(chosen.mask, keep)

    hold(law)


def test_reduce_and_lift_take_anything_along_the_tokens() -> None:
    def law(draw: Draw) -> None:
        chosen = draw_selection(draw)
        b, k = chosen.index.shape
        x = draw_features(draw, b, chosen.n)
        reduced = chosen.reduce(x)
        assert reduced.shape == (b, k, *x.shape[2:])
        assert reduced.dtype == x.dtype
        assert torch.equal(reduced[chosen.valid], x[chosen.mask])
        y = reduced.roll(1, 0) if b else reduced
        lifted = chosen.lift(y, into=x)
        assert torch.equal(chosen.reduce(lifted)[chosen.valid], y[chosen.valid])
        assert torch.equal(lifted[~chosen.mask], x[~chosen.mask])
        assert torch.equal(chosen.lift(reduced, into=x), x)

    hold(law)


def test_keeping_everything_is_the_identity() -> None:
    x = torch.randn(2, 5, 3)
    everything = Selection.from_mask(torch.ones(2, 5, dtype=torch.bool))
    assert everything.index.tolist() == [list(range(5))] * 2
    assert torch.equal(everything.reduce(x), x)
    assert torch.equal(everything.lift(x, into=torch.zeros_like(x)), x)


def test_fewer_and_more_slots() -> None:
    keep = torch.tensor([[True, False, True, True], [False, False, True, False]])
    last = Selection.from_mask(keep, 2)
    assert last.reduce(torch.arange(4).expand(2, 4))[last.valid].tolist() == [2, 3, 2]
    spare = Selection.from_mask(keep, 4)
    assert spare.counts.tolist() == [3, 1]
    assert torch.equal(spare.mask, keep)


def test_gradients_through_reduce_and_lift() -> None:
    keep = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    chosen = Selection.from_mask(keep)
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: chosen.reduce(x) * chosen.valid[..., None], (x,))
    assert torch.autograd.gradcheck(lambda y, x: chosen.lift(y, into=x), (y, x))

    def gated(x: Tensor, gate: Tensor) -> Tensor:
        return Selection(chosen.index, chosen.valid, 4, gate).reduce(x)

    assert torch.autograd.gradcheck(gated, (x, gate))
    assert torch.equal(gated(x, gate)[chosen.valid], (x * gate[..., None])[keep])
    ids = torch.arange(12).view(3, 4)
    assert torch.equal(Selection(chosen.index, chosen.valid, 4, gate).reduce(ids), chosen.reduce(ids))


def _images(draw: Draw) -> tuple[Tensor, Tensor, Tensor, int]:
    """Positions (b n) of b images in s sequences with -1 padding, their rows, and what is real (s l)."""
    s, length, n = draw.integer(1, 3), draw.integer(1, 14), draw.integer(1, 6)
    g = draw.generator()
    valid = torch.rand(s, length, generator=g) < 0.9
    positions, rows = [], []
    for row in range(s):
        free = valid[row].nonzero().flatten().tolist()
        while free and torch.rand((), generator=g) < 0.8:
            size = int(torch.randint(1, min(n, len(free)) + 1, (), generator=g))
            image, free = free[:size], free[size + 1 :]
            positions.append(image + [-1] * (n - size))
            rows.append(row)
    order, where = draw.permutation(len(rows)), torch.tensor(positions, dtype=torch.long).view(-1, n)
    return where[order], torch.tensor(rows, dtype=torch.long)[order], valid, length


def test_selection_scatters_over_sequences_of_several_images() -> None:
    def law(draw: Draw) -> None:
        positions, rows, valid, length = _images(draw)
        keep = draw.mask(*positions.shape) & (positions >= 0)
        gate = torch.rand(positions.shape, generator=draw.generator())
        chosen = Selection.from_mask(keep)
        expected, soft = valid.clone(), torch.ones(valid.shape)
        for image, row in enumerate(rows):
            for j, position in enumerate(positions[image]):
                if position >= 0:
                    expected[row, position] = keep[image, j]
                    soft[row, position] = gate[image, j]
        whole = chosen.scatter(positions, length, rows=rows, valid=valid)
        check_selection(whole, mask=valid, counts=expected.sum(1))
        assert torch.equal(whole.mask, expected)
        gated = Selection(chosen.index, chosen.valid, chosen.n, gate).scatter(
            positions, length, rows=rows, valid=valid
        )
        assert gated.gate is not None
        assert torch.equal(gated.gate, soft)
        assert torch.equal(gated.mask, expected)

    hold(law)


def test_scatter_defaults_to_one_image_a_row() -> None:
    chosen = Selection.from_mask(torch.tensor([[True, False], [False, True]]))
    whole = chosen.scatter(torch.tensor([[1, 2], [0, 1]]), 4)
    assert whole.mask.tolist() == [[True, True, False, True], [False, True, True, True]]


def test_the_gate_keeps_its_gradient_through_scatter() -> None:
    chosen = Selection.from_mask(torch.tensor([[True, False, True]]))
    gate = torch.rand(1, 3, dtype=torch.float64, requires_grad=True)

    def function(gate: Tensor) -> Tensor:
        gated = Selection(chosen.index, chosen.valid, 3, gate)
        whole = gated.scatter(torch.tensor([[2, -1, 1]]), 4)
        assert whole.gate is not None
        return whole.gate

    assert torch.autograd.gradcheck(function, (gate,))


def test_assignment_laws() -> None:
    def law(draw: Draw) -> None:
        merged = draw_assignment(draw)
        b, n = merged.group.shape
        check_assignment(merged, draw.normal(b, n, *draw.choice((3,), (), (2, 2)), dtype=torch.float64))

    hold(law)


def test_assignment_reduces_other_dtypes() -> None:
    def law(draw: Draw) -> None:
        merged = draw_assignment(draw)
        b, n = merged.group.shape
        x = draw_features(draw, b, n)
        reduced = merged.reduce(x)
        assert reduced.shape == (b, merged.k, *x.shape[2:])
        assert reduced.dtype == x.dtype
        if not x.is_floating_point():
            at = merged.anchor[merged.valid]
            row = torch.arange(b)[:, None].expand_as(merged.anchor)[merged.valid]
            assert torch.equal(reduced[merged.valid], x[row, at])
        else:
            exact = merged.reduce(x.double())
            size = float(x.abs().max()) if x.numel() else 0.0
            assert_close(reduced, exact.to(x.dtype), 8 * torch.finfo(x.dtype).eps * size)

    hold(law)


def test_assignment_gradients() -> None:
    group, anchor = torch.tensor([[0, 1, 0, -1]]), torch.tensor([[2, 1]])
    x = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    w = (torch.rand(1, 4, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: Assignment(group, w, 2, anchor).reduce(x), (x, w))
    assert torch.autograd.gradcheck(lambda y, x: Assignment(group, w, 2, anchor).lift(y, into=x), (y, x))


def test_assignment_scatters_over_sequences_of_several_images() -> None:
    def law(draw: Draw) -> None:
        positions, rows, valid, length = _images(draw)
        b, n = positions.shape
        there = positions >= 0
        group = torch.where(there & draw.mask(b, n), torch.arange(n) % 2, -1)
        anchor = torch.stack([(group == g).float().argmax(1) for g in range(2)], 1)
        anchor = torch.where(torch.stack([(group == g).any(1) for g in range(2)], 1), anchor, -1)
        merged = Assignment(group, torch.rand(b, n, generator=draw.generator()) + 0.1, 2, anchor)
        whole = merged.scatter(positions, length, rows=rows, valid=valid)
        x = draw.normal(*valid.shape, 3, dtype=torch.float64)
        check_assignment(whole, x)
        alone = torch.ones_like(valid)
        for image, row in enumerate(rows):
            alone[row, positions[image][there[image]]] = False
        assert torch.equal(whole.group >= 0, valid & alone | _placed(positions, rows, group >= 0, valid))
        flat = torch.cat([x.flatten(0, 1), x.new_zeros(1, 3)])
        index = torch.where(there, rows[:, None] * length + positions, valid.numel())
        inside, lifted = flat[index], whole.lift(whole.reduce(x), into=x)
        expected = merged.lift(merged.reduce(inside), into=inside)
        got = torch.cat([lifted.flatten(0, 1), x.new_zeros(1, 3)])[index]
        assert_close(got, expected, 1e-6)
        assert_close(lifted[alone], x[alone], 0)

    hold(law)


def _placed(positions: Tensor, rows: Tensor, flags: Tensor, valid: Tensor) -> Tensor:
    out = torch.zeros_like(valid)
    for image, row in enumerate(rows):
        out[row, positions[image][flags[image]]] = True
    return out
