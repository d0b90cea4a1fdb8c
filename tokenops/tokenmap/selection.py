"""Selection: K of N tokens survive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.rows import gather_rows, put_rows
from tokenops.shapes import Bool, Float, Int
from tokenops.tokenmap.checks import check_alike, check_field, check_range, check_rows, flat_places


@dataclass(frozen=True, eq=False)
class Selection:
    r"""K of N tokens of every row, as one linear map with 0/1 (or gated) rows.

    .. math:: y_j = g_{i_j} x_{i_j} \quad (\text{reduce}), \qquad
        z_i = y_j \text{ where } i = i_j, \text{ else } x_i \quad (\text{lift})

    for the valid slots j, i the ``index`` and g the ``gate``, 1 without one.

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
        TokenOpsError: wrong rank, dtype or device of a field; an index out of range (on CUDA an assertion on
            the device, see ``tokenops.tokenmap.checks``).

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
        if isinstance(self.n, bool) or not isinstance(self.n, (Integral, torch.SymInt)):
            raise TokenOpsError("Selection", "n as a whole number", repr(self.n))
        check_field("Selection", "index", self.index, torch.long, (None, None))
        check_field("Selection", "valid", self.valid, torch.bool, tuple(self.index.shape), self.index.device)
        for name, value in (("gate", self.gate), ("scores", self.scores)):
            if value is not None:
                check_field("Selection", name, value, None, (self.index.shape[0], self.n), self.index.device)
        if self.n < 0 or (self.n == 0 and self.index.shape[1] > 0):
            raise TokenOpsError("Selection", "n >= 1 where slots exist", self.n)
        check_range("Selection", "index", self.index, 0, self.n)

    @classmethod
    def from_mask(cls, keep: Bool[Tensor, "b n"], k: int | None = None) -> Selection:
        """Keep the True tokens of each row, right-aligned, filler on the left.

        ``k`` is the number of slots (the largest count by default, which reads one number from the device).
        A row with more than ``k`` True tokens keeps its last ``k``.

        Raises:
            TokenOpsError: ``keep`` no bool (b n), ``k`` outside [0, n].

        >>> s = Selection.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
        >>> s.k, s.counts, s.valid.tolist()
        (2, tensor([2, 1]), [[True, True], [False, True]])
        >>> s.mask
        tensor([[ True, False,  True],
                [False,  True, False]])
        """
        check_field("Selection.from_mask", "keep", keep, torch.bool, (None, None))
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

        Raises:
            TokenOpsError: ``x`` not (b n ...), or on another device.
        """
        check_rows("Selection.reduce", "x", x, self.index.shape[0], self.n, self.index.device)
        if self.gate is not None and x.is_floating_point():
            x = x * self.gate.to(x.dtype).reshape(self.gate.shape + (1,) * (x.ndim - 2))
        return gather_rows(x, self.index)

    def lift(self, y: Tensor, *, into: Tensor) -> Tensor:
        """(b k ...) -> (b n ...): a copy of ``into`` with the valid slots of ``y`` at their positions.

        Raises:
            TokenOpsError: ``y`` not (b k ...), ``into`` not (b n ...), or of different dtypes or widths.

        >>> s = Selection.from_mask(torch.tensor([[True, False, True]]))
        >>> s.lift(torch.tensor([[7.0, 9.0]]), into=torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[7., 2., 9.]])
        """
        check_rows("Selection.lift", "y", y, self.index.shape[0], self.k, self.index.device)
        check_rows("Selection.lift", "into", into, self.index.shape[0], self.n, self.index.device)
        check_alike("Selection.lift", y, into)
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
            positions: where token j of row i stands in its sequence, below ``length``; -1 for padding tokens.
            length: tokens per sequence.
            rows: the sequence each row (image) belongs to; row i by default, so one image a sequence.
            valid: (s l) False where a sequence is padding; all real by default. It fixes the number of
                sequences.

        A ``gate`` is carried along, 1 at all other tokens; ``scores`` are not.

        Raises:
            TokenOpsError: ``positions``, ``rows`` or ``valid`` of another shape or dtype, or out of range.

        >>> s = Selection.from_mask(torch.tensor([[True, False]]))
        >>> s.scatter(torch.tensor([[1, 2]]), 4).mask  # an image at places 1 and 2 of a sequence of 4
        tensor([[ True,  True, False,  True]])
        """
        who, size = "Selection.scatter", (self.index.shape[0], self.n)
        flat, valid = flat_places(who, positions, length, rows, valid, size)
        keep = torch.cat([valid.flatten(), valid.new_zeros(1)])
        keep[flat.flatten()] = self.mask.flatten()
        chosen = Selection.from_mask(keep[:-1].view(valid.shape))
        if self.gate is None:
            return chosen
        gate = self.gate.new_ones(valid.numel() + 1).index_put((flat.flatten(),), self.gate.flatten())
        return replace(chosen, gate=gate[:-1].view(valid.shape))
