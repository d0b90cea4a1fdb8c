"""Units: which tokens of the sequences belong to which image, for budgets per image inside a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.topk import hard_topk
from tokenops.shapes import Bool, Float, Int
from tokenops.tokenmap.checks import check_field


@dataclass(frozen=True, eq=False)
class Units:
    """The images and videos of a batch of sequences; everything Python needs to know is read once.

    Attributes:
        unit: (b n) long, the unit of each visual token, numbered through the batch; -1 for others.
        line: (b n) long or None, the line of an image that a token belongs to, line breaks included; -1 for
            others. A line break is no visual token: it stays where its line keeps one.
        places: (u m) long, the tokens of each unit in the flattened batch, padded.
        real: (u m) bool, False for that padding.
        sizes: visual tokens of each unit.
        rows: the sequence of each unit.
        lines: above every number in ``line``.

    >>> units = Units.of(torch.tensor([[-1, 0, 0, -1, 1]]))
    >>> units.sizes, units.rows
    ((2, 1), (0, 0))
    """

    unit: Int[Tensor, "b n"]
    line: Int[Tensor, "b n"] | None
    places: Int[Tensor, "u m"]
    real: Bool[Tensor, "u m"]
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    lines: int = 0

    @classmethod
    def of(cls, unit: Int[Tensor, "b n"], line: Int[Tensor, "b n"] | None = None) -> Units:
        """Read the numbers of the units; those without tokens have size 0.

        Raises:
            TokenOpsError: unit or line no long tensors of one shape, or a unit in two sequences.
        """
        check_field("Units", "unit", unit, torch.long, (None, None))
        if line is not None:
            check_field("Units", "line", line, torch.long, tuple(unit.shape), unit.device)
        flat = unit.flatten()
        at = (flat >= 0).nonzero().flatten()
        order = at[flat[at].argsort(stable=True)]
        counts = flat[at].bincount() if len(at) else flat.new_zeros(0)
        sizes = tuple(counts.tolist())
        longest = max(sizes, default=0)
        slot = torch.arange(longest, device=unit.device)
        real = slot < counts[:, None]
        places = torch.zeros(len(sizes), longest, dtype=torch.long, device=unit.device)
        places[real] = order
        first = places[:, 0] if longest else flat.new_zeros(0)
        rows = first // unit.shape[1]
        if bool(((places // unit.shape[1] != rows[:, None]) & real).any()):
            raise TokenOpsError("Units", "units inside one sequence", "a unit in two")
        lines = 0 if line is None or line.numel() == 0 else int(line.amax()) + 1
        return cls(unit, line, places, real, sizes, tuple(rows.tolist()), lines)

    @property
    def visual(self) -> Bool[Tensor, "b n"]:
        """True at visual tokens."""
        return self.unit >= 0

    def top(
        self, scores: Float[Tensor, "b n"], counts: list[int], alive: Bool[Tensor, "b n"] | None = None
    ) -> Bool[Tensor, "b n"]:
        """True at the ``counts[u]`` best visual tokens of every unit u, among the ``alive`` ones.

        Raises:
            TokenOpsError: scores that are no float tensor.

        >>> units = Units.of(torch.tensor([[-1, 0, 0, -1, 1]]))
        >>> units.top(torch.tensor([[9.0, 1.0, 3.0, 9.0, 2.0]]), [1, 1])
        tensor([[False, False,  True, False,  True]])
        """
        picked = scores.flatten()[self.places]
        real = self.real if alive is None else self.real & alive.flatten()[self.places]
        k = (
            counts[0]
            if len(set(counts)) == 1
            else torch.tensor(counts, dtype=torch.long, device=scores.device)
        )
        best = hard_topk(picked, k, mask=real)
        kept = torch.zeros(scores.numel() + 1, dtype=torch.bool, device=scores.device)
        kept[torch.where(self.real, self.places, scores.numel())] = best & self.real
        return kept[:-1].view(scores.shape)

    def with_text(self, kept: Bool[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """``kept`` visual tokens, all valid text, and the breaks of lines that keep a token.

        >>> units = Units.of(torch.tensor([[-1, 0, 0, -1]]))
        >>> units.visual
        tensor([[False,  True,  True, False]])
        >>> kept = torch.tensor([[False, False, True, False]])
        >>> valid = torch.tensor([[True, True, True, False]])
        >>> units.with_text(kept, valid)
        tensor([[ True, False,  True, False]])
        """
        others = valid & ~self.visual
        if self.line is None:
            return kept | others
        alive = torch.zeros(self.lines + 1, dtype=torch.bool, device=kept.device)
        alive[torch.where(kept, self.line, -1)] = True
        # the last place stands for tokens without a line: text, which stays
        alive[-1] = True
        return kept | (others & alive[self.line])
