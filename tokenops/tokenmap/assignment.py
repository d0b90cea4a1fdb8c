"""Assignment: every token joins one of K groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.kernels.rows import gather_rows, pool_rows, put_rows
from tokenops.shapes import Bool, Float, Int
from tokenops.tokenmap.checks import (
    check_alike,
    check_field,
    check_range,
    check_rows,
    check_weight,
    flat_places,
)
from tokenops.tokenmap.selection import Selection


@dataclass(frozen=True, eq=False)
class Assignment:
    r"""Every one of N tokens goes to one of K groups: merging as a linear map.

    .. math:: \bar x_g = \sum_{i \in g} w_i x_i \Big/ \sum_{i \in g} w_i

    Attributes:
        group: (b n) long in ``[0, k)``; -1 leaves a token out (padding).
        weight: (b n) float, finite and >= 0, the token's mass (how many original tokens it stands for).
        k: number of groups (slots) per row.
        anchor: (b k) long, the token whose position, mask and ids stand for the group; -1 marks a slot
            without a group.

    ``reduce`` conserves the sum of weights (:attr:`mass`) and the weighted sum of features; lift-after-reduce
    is a projection.

    Raises:
        TokenOpsError: wrong rank, dtype or device of a field; a group or anchor out of range (on CUDA an
            assertion on the device, see ``tokenops.tokenmap.checks``); a bad weight (on the CPU only).

    >>> a = Assignment(torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 1.0, 3.0]]), 2, torch.tensor([[0, 1]]))
    >>> a.reduce(torch.tensor([[[4.0], [5.0], [8.0]]])).flatten(), a.mass
    (tensor([7., 5.]), tensor([[4., 1.]]))
    """

    group: Int[Tensor, "b n"]
    weight: Float[Tensor, "b n"]
    k: int
    anchor: Int[Tensor, "b k"]

    def __post_init__(self) -> None:
        check_field("Assignment", "group", self.group, torch.long, (None, None))
        check_field("Assignment", "weight", self.weight, None, tuple(self.group.shape), self.group.device)
        check_field(
            "Assignment", "anchor", self.anchor, torch.long, (self.group.shape[0], self.k), self.group.device
        )
        check_range("Assignment", "group", self.group, -1, self.k)
        check_range("Assignment", "anchor", self.anchor, -1, self.n)
        check_weight("Assignment", self.weight, self.group)

    @classmethod
    def joining(cls, home: Int[Tensor, "b n"], weight: Float[Tensor, "b n"] | None = None) -> Assignment:
        """The groups of tokens that name the anchor they join: itself for an anchor, -1 to be left out.

        Groups stand in the order of their anchors, right-aligned as in :meth:`Selection.from_mask`; every
        token weighs 1 unless told.

        Raises:
            TokenOpsError: ``home`` no long (b n) or out of range, a weight that :class:`Assignment` refuses.

        >>> a = Assignment.joining(torch.tensor([[0, 2, 2, -1], [1, 1, 1, 1]]))
        >>> a.anchor.tolist(), a.group.tolist()
        ([[0, 2], [-1, 1]], [[0, 1, 1, -1], [1, 1, 1, 1]])
        """
        check_field("Assignment.joining", "home", home, torch.long, (None, None))
        check_range("Assignment.joining", "home", home, -1, home.shape[1])
        anchors = Selection.from_mask(home == torch.arange(home.shape[1], device=home.device))
        slots = torch.arange(anchors.k, device=home.device).expand(anchors.index.shape)
        slot = put_rows(torch.zeros_like(home), anchors.index, anchors.valid, slots)
        group = torch.where(home >= 0, slot.gather(1, home.clamp(min=0)), -1)
        weight = torch.ones(home.shape, device=home.device) if weight is None else weight
        return cls(group, weight, anchors.k, torch.where(anchors.valid, anchors.index, -1))

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
        """(b n ...) -> (b k ...): weighted mean of floating features; the anchor's value of anything else.

        Raises:
            TokenOpsError: ``x`` not (b n ...), or on another device.
        """
        check_rows("Assignment.reduce", "x", x, self.group.shape[0], self.n, self.group.device)
        if self.n == 0:
            return x.new_zeros(x.shape[0], self.k, *x.shape[2:])
        if not x.is_floating_point():
            return gather_rows(x, self.anchor.clamp(min=0))
        total, mass = pool_rows(x, self.group, self._relative_weight(), self.k)
        mass = mass.reshape(mass.shape + (1,) * (x.ndim - 2))
        # a group's mass is at least 1, from its heaviest token, or 0
        return (total / mass.clamp(min=0.5)).to(x.dtype)

    def _relative_weight(self) -> Float[Tensor, "b n"]:
        """Weights over the power of two below the largest of their group, so that sums can be held."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        inside = self.group >= 0
        slot = torch.where(inside, self.group, self.k)
        largest = weight.new_zeros(weight.shape[0], self.k + 1)
        largest = largest.scatter_reduce(1, slot, weight.detach(), "amax").gather(1, slot)
        largest = torch.where(inside & (largest > 0), largest, 1)
        return weight / (largest / (2 * largest.frexp().mantissa))

    def lift(self, y: Tensor, *, into: Tensor) -> Tensor:
        """(b k ...) -> (b n ...): every token receives its group's value; tokens left out keep ``into``.

        Raises:
            TokenOpsError: ``y`` not (b k ...), ``into`` not (b n ...), or of different dtypes or widths.

        >>> a = Assignment(torch.tensor([[0, 1, 0]]), torch.ones(1, 3), 2, torch.tensor([[0, 1]]))
        >>> a.lift(torch.tensor([[6.0, 5.0]]), into=torch.zeros(1, a.n)), a.valid
        (tensor([[6., 5., 6.]]), tensor([[True, True]]))
        """
        check_rows("Assignment.lift", "y", y, self.group.shape[0], self.k, self.group.device)
        check_rows("Assignment.lift", "into", into, self.group.shape[0], self.n, self.group.device)
        check_alike("Assignment.lift", y, into)
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

        Raises:
            TokenOpsError: what :meth:`Selection.scatter` refuses.

        >>> a = Assignment(torch.tensor([[0, 0]]), torch.ones(1, 2), 1, torch.tensor([[1]]))
        >>> whole = a.scatter(torch.tensor([[1, 2]]), 4)  # an image at places 1 and 2 of a sequence of 4
        >>> whole.anchor.tolist(), whole.group.tolist()
        ([[0, 2, 3]], [[0, 1, 1, 2]])
        """
        who, size = "Assignment.scatter", (self.group.shape[0], self.n)
        place, valid = flat_places(who, positions, length, rows, valid, size)
        place = place.flatten()
        there = (positions >= 0) & (self.group >= 0)
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
        return Assignment.joining(home[:-1].view(valid.shape), weight[:-1].view(valid.shape))
