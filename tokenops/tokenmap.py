"""The values that carry a reduction: decide once, apply to anything that runs along the token axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.rows import gather_rows, pool_rows, put_rows
from tokenops.shapes import Bool, Float, Int


def _check(
    who: str,
    name: str,
    tensor: object,
    dtype: torch.dtype | None,
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
) -> None:
    expected = f"{name} of shape ({', '.join('*' if s is None else str(s) for s in shape)})"
    if not isinstance(tensor, Tensor):
        raise TokenOpsError(who, expected, type(tensor).__name__)
    if tensor.ndim != len(shape) or any(s not in (None, t) for s, t in zip(shape, tensor.shape, strict=True)):
        raise TokenOpsError(who, expected, tuple(tensor.shape))
    if (dtype is None and not tensor.is_floating_point()) or (dtype is not None and tensor.dtype != dtype):
        raise TokenOpsError(who, f"{name} of dtype {dtype or 'float'}", tensor.dtype)
    if device is not None and tensor.device != device:
        raise TokenOpsError(who, f"{name} on {device}", tensor.device)


def _check_rows(who: str, name: str, x: Tensor, b: int, n: int, device: torch.device) -> None:
    if x.ndim < 2 or x.shape[:2] != (b, n):
        raise TokenOpsError(who, f"{name} of shape ({b}, {n}, ...)", tuple(x.shape))
    if x.device != device:
        raise TokenOpsError(who, f"{name} on {device}", x.device)


def _check_alike(who: str, y: Tensor, into: Tensor) -> None:
    if y.shape[2:] != into.shape[2:] or y.dtype != into.dtype:
        got = f"{tuple(y.shape[2:])} {y.dtype}"
        raise TokenOpsError(who, f"y like into, {tuple(into.shape[2:])} {into.dtype}", got)


@dataclass(frozen=True, eq=False)
class Selection:
    """K of N tokens of every row, as one linear map with 0/1 (or gated) rows.

    Attributes:
        index: (b k) long. Valid slots hold unique positions in ``[0, n)`` in ascending order; other slots
            are filler, any position in range.
        valid: (b k) bool. False marks filler, so that rows may keep different counts.
        n: number of tokens selected from.
        gate: (b n) soft mask of training or None: the differentiable twin of the hard choice in ``index``.
            When set, :meth:`reduce` multiplies floating features by it.
        scores: (b n) what the choice was made from, for reports and losses, or None.

    With ``gate=None``: ``reduce(lift(y, into=x)) == y`` on valid slots and ``lift(reduce(x), into=x) == x``.

    Raises:
        TokenOpsError: wrong rank, dtype or device of a field.

    >>> s = Selection.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
    >>> s.index.tolist(), s.valid.tolist()
    ([[0, 2], [2, 1]], [[True, True], [False, True]])
    >>> s.reduce(torch.tensor([[10, 11, 12], [20, 21, 22]]))[s.valid]
    tensor([10, 12, 21])
    """

    index: Int[Tensor, "b k"]
    valid: Bool[Tensor, "b k"]
    n: int
    gate: Float[Tensor, "b n"] | None = None
    scores: Float[Tensor, "b n"] | None = None

    def __post_init__(self) -> None:
        _check("Selection", "index", self.index, torch.long, (None, None))
        _check("Selection", "valid", self.valid, torch.bool, tuple(self.index.shape), self.index.device)
        for name, value in (("gate", self.gate), ("scores", self.scores)):
            if value is not None:
                _check("Selection", name, value, None, (self.index.shape[0], self.n), self.index.device)
        if self.n < 0 or (self.n == 0 and self.index.shape[1] > 0):
            raise TokenOpsError("Selection", "n >= 1 where slots exist", self.n)

    @classmethod
    def from_mask(cls, keep: Bool[Tensor, "b n"], k: int | None = None) -> Selection:
        """Keep the True tokens of each row, right-aligned, filler on the left.

        ``k`` is the number of slots (the largest count by default, which reads one number from the device).
        A row with more than ``k`` True tokens keeps its last ``k``.
        """
        _check("Selection.from_mask", "keep", keep, torch.bool, (None, None))
        counts = keep.sum(1)
        if k is None:
            k = int(counts.max()) if keep.shape[0] else 0
        n = keep.shape[1]
        if not 0 <= k <= n:
            raise TokenOpsError("Selection.from_mask", f"k in [0, {n}]", k)
        index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, n - k :]
        slot = torch.arange(k, device=keep.device)
        return cls(index, slot >= k - counts[:, None], n)

    @property
    def k(self) -> int:
        """Number of slots per row, the largest kept count."""
        return self.index.shape[1]

    @property
    def counts(self) -> Int[Tensor, "b"]:
        """Kept tokens of each row."""
        return self.valid.sum(1)

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """True where a token is kept."""
        zeros = torch.zeros(self.valid.shape[0], self.n, dtype=torch.bool, device=self.valid.device)
        return put_rows(zeros, self.index, self.valid, torch.ones_like(self.valid))

    def reduce(self, x: Tensor) -> Tensor:
        """(b n ...) -> (b k ...): the kept tokens; filler slots hold whatever stands at their index.

        Any dtype and trailing shape; differentiable. Floating ``x`` is multiplied by a ``gate``.
        """
        _check_rows("Selection.reduce", "x", x, self.index.shape[0], self.n, self.index.device)
        if self.gate is not None and x.is_floating_point():
            x = x * self.gate.to(x.dtype).reshape(self.gate.shape + (1,) * (x.ndim - 2))
        return gather_rows(x, self.index)

    def lift(self, y: Tensor, *, into: Tensor) -> Tensor:
        """(b k ...) -> (b n ...): a copy of ``into`` with the valid slots of ``y`` at their positions."""
        _check_rows("Selection.lift", "y", y, self.index.shape[0], self.k, self.index.device)
        _check_rows("Selection.lift", "into", into, self.index.shape[0], self.n, self.index.device)
        _check_alike("Selection.lift", y, into)
        return put_rows(into, self.index, self.valid, y)

    def scatter(
        self,
        positions: Int[Tensor, "b n"],
        length: int,
        *,
        rows: Int[Tensor, "b"] | None = None,
        valid: Bool[Tensor, "s l"] | None = None,
    ) -> Selection:
        """The same decision over whole sequences: other tokens always kept, padding is filler.

        Args:
            positions: where token j of row i stands in its sequence; -1 for padding tokens.
            length: tokens per sequence.
            rows: the sequence each row (image) belongs to; row i by default, so one image a sequence.
            valid: (s l) False where a sequence is padding; all real by default. It fixes the number of
                sequences.

        A ``gate`` is carried along, 1 at all other tokens; ``scores`` are not.
        """
        b = self.index.shape[0]
        who = "Selection.scatter"
        _check(who, "positions", positions, torch.long, (b, self.n))
        rows = torch.arange(b, device=positions.device) if rows is None else rows
        _check(who, "rows", rows, torch.long, (b,))
        if valid is None:
            valid = torch.ones(b, length, dtype=torch.bool, device=positions.device)
        _check(who, "valid", valid, torch.bool, (None, length))
        there = positions >= 0
        flat = torch.where(there, rows[:, None] * length + positions, valid.numel())
        keep = torch.cat([valid.flatten(), valid.new_zeros(1)])
        keep[flat.flatten()] = self.mask.flatten()
        chosen = Selection.from_mask(keep[:-1].view(valid.shape))
        if self.gate is None:
            return chosen
        gate = self.gate.new_ones(valid.numel() + 1).index_put((flat.flatten(),), self.gate.flatten())
        return replace(chosen, gate=gate[:-1].view(valid.shape))


@dataclass(frozen=True, eq=False)
class Assignment:
    r"""Every one of N tokens goes to one of K groups: merging as a linear map.

    .. math:: \bar x_g = \sum_{i \in g} w_i x_i \Big/ \sum_{i \in g} w_i

    Attributes:
        group: (b n) long in ``[0, k)``; -1 leaves a token out (padding).
        weight: (b n) float, the token's mass (how many original tokens it stands for).
        k: number of groups (slots) per row.
        anchor: (b k) long, the token whose position, mask and ids stand for the group; -1 marks a slot
            without a group.

    ``reduce`` conserves the sum of weights (:attr:`mass`) and the weighted sum of features; lift-after-reduce
    is a projection.

    Raises:
        TokenOpsError: wrong rank, dtype or device of a field.

    >>> a = Assignment(torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 1.0, 3.0]]), 2, torch.tensor([[0, 1]]))
    >>> a.reduce(torch.tensor([[[4.0], [5.0], [8.0]]])).flatten(), a.mass
    (tensor([7., 5.]), tensor([[4., 1.]]))
    """

    group: Int[Tensor, "b n"]
    weight: Float[Tensor, "b n"]
    k: int
    anchor: Int[Tensor, "b k"]

    def __post_init__(self) -> None:
        _check("Assignment", "group", self.group, torch.long, (None, None))
        _check("Assignment", "weight", self.weight, None, tuple(self.group.shape), self.group.device)
        _check(
            "Assignment", "anchor", self.anchor, torch.long, (self.group.shape[0], self.k), self.group.device
        )

    @property
    def n(self) -> int:
        """Number of tokens merged from."""
        return self.group.shape[1]

    @property
    def valid(self) -> Bool[Tensor, "b k"]:
        """True where a slot holds a group."""
        return self.anchor >= 0

    @property
    def mass(self) -> Float[Tensor, "b k"]:
        """Sum of the weights of each group, in float32 or wider."""
        return pool_rows(torch.ones_like(self.weight)[..., None], self.group, self.weight, self.k)[0][..., 0]

    def reduce(self, x: Tensor) -> Tensor:
        """(b n ...) -> (b k ...): weighted mean of floating features; the anchor's value of anything else."""
        _check_rows("Assignment.reduce", "x", x, self.group.shape[0], self.n, self.group.device)
        if self.n == 0:
            return x.new_zeros(x.shape[0], self.k, *x.shape[2:])
        if not x.is_floating_point():
            return gather_rows(x, self.anchor.clamp(min=0))
        total, mass = pool_rows(x, self.group, self.weight, self.k)
        mass = mass.reshape(mass.shape + (1,) * (x.ndim - 2))
        return (total / mass.clamp(min=torch.finfo(total.dtype).tiny)).to(x.dtype)

    def lift(self, y: Tensor, *, into: Tensor) -> Tensor:
        """(b k ...) -> (b n ...): every token receives its group's value; tokens left out keep ``into``."""
        _check_rows("Assignment.lift", "y", y, self.group.shape[0], self.k, self.group.device)
        _check_rows("Assignment.lift", "into", into, self.group.shape[0], self.n, self.group.device)
        _check_alike("Assignment.lift", y, into)
        inside = (self.group >= 0).reshape(self.group.shape + (1,) * (into.ndim - 2))
        if self.k == 0:
            return into
        return torch.where(inside, gather_rows(y, self.group.clamp(min=0)), into)

    def scatter(
        self,
        positions: Int[Tensor, "b n"],
        length: int,
        *,
        rows: Int[Tensor, "b"] | None = None,
        valid: Bool[Tensor, "s l"] | None = None,
    ) -> Assignment:
        """The same merge over whole sequences; other tokens stay alone, padding is left out.

        Arguments as in :meth:`Selection.scatter`. A group stands at its anchor's position.
        """
        b = self.group.shape[0]
        who = "Assignment.scatter"
        _check(who, "positions", positions, torch.long, (b, self.n))
        rows = torch.arange(b, device=positions.device) if rows is None else rows
        _check(who, "rows", rows, torch.long, (b,))
        if valid is None:
            valid = torch.ones(b, length, dtype=torch.bool, device=positions.device)
        _check(who, "valid", valid, torch.bool, (None, length))
        there = (positions >= 0) & (self.group >= 0)
        place = torch.where(positions >= 0, rows[:, None] * length + positions, valid.numel()).flatten()
        # the sequence position of each token's anchor: itself outside the image, nobody when left out
        home = torch.where(valid, torch.arange(length, device=valid.device), -1).flatten()
        home = torch.cat([home, home.new_zeros(1)])
        if self.k:
            anchor = gather_rows(self.anchor, self.group.clamp(min=0)).clamp(min=0)
            at = torch.where(there, gather_rows(positions, anchor), -1)
        else:
            at = torch.full_like(positions, -1)
        home[place] = at.flatten()
        weight = torch.cat([self.weight.new_ones(valid.numel()), self.weight.new_zeros(1)])
        weight = weight.index_put((place,), self.weight.flatten())
        home, weight = home[:-1].view(valid.shape), weight[:-1].view(valid.shape)
        anchors = Selection.from_mask(home == torch.arange(length, device=valid.device))
        slot = torch.zeros_like(home)
        slot = put_rows(
            slot,
            anchors.index,
            anchors.valid,
            torch.arange(anchors.k, device=slot.device).expand(anchors.index.shape),
        )
        group = torch.where(home >= 0, slot.gather(1, home.clamp(min=0)), -1)
        return Assignment(group, weight, anchors.k, torch.where(anchors.valid, anchors.index, -1))
