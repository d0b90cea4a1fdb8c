"""From visual units and features to one decision over whole sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenops.errors import TokenOpsError
from tokenops.integrations.layouts import Unit
from tokenops.integrations.trace import Trace
from tokenops.kernels.rows import gather_rows, put_rows
from tokenops.stages import Stage
from tokenops.tokenmap import Assignment, Selection


@dataclass(eq=False)
class Placed:
    """A unit in its sequence: ``row`` of the batch and the ``positions`` (p) of its placeholders."""

    unit: Unit
    row: int
    positions: Tensor

    @property
    def patches(self) -> Tensor:
        """(n) positions of the patches, line breaks left out."""
        if self.unit.line is None:
            return self.positions
        return self.positions[self.unit.patch.to(self.positions.device) >= 0]


@dataclass(eq=False)
class Decision:
    """A stage's choice: per group of units, and over the whole sequences.

    Attributes:
        chosen: Selection over groups (an image each, or a sample), with the gate in training; of the anchors
            where tokens were merged.
        mask: (g n) True for real tokens of a group.
        rows: (g) long, the sample of each group.
        groups: the units of each group.
        over_sequence: the same decision over whole sequences.
        dropped: whether any real token leaves.
        merged: where the tokens of a group went, or None if they just leave.
        embeds: (b l d) the sequences with the features of merged tokens at their anchors, or None.
    """

    chosen: Selection
    mask: Tensor
    rows: Tensor
    groups: list[list[Placed]]
    over_sequence: Selection
    dropped: bool
    merged: Assignment | None = None
    embeds: Tensor | None = None


def place(units: Mapping[str, Sequence[Unit]], tokens: Mapping[str, Tensor]) -> list[Placed]:
    """Find the placeholders of every unit, in the order of the sequence.

    Args:
        units: kind -> units in the order their features were merged.
        tokens: kind -> (b l) True at its placeholders.
    """
    placed: list[Placed] = []
    for kind, of_kind in units.items():
        length = tokens[kind].shape[1]
        flat = tokens[kind].flatten().nonzero().flatten()
        sizes = [u.size for u in of_kind]
        if sum(sizes) != flat.shape[0]:
            raise TokenOpsError("attach", f"{sum(sizes)} {kind} placeholders", flat.shape[0])
        # a sample without images may have an empty unit
        parts = [(u, p) for u, p in zip(of_kind, flat.split(sizes), strict=True) if u.size]
        if not parts:
            continue
        ends = torch.stack([torch.stack([p[0], p[-1]]) for _, p in parts]) // length
        for (unit, positions), (row, last) in zip(parts, ends.tolist(), strict=True):
            if row != last:
                raise TokenOpsError("attach", f"one {kind} inside one sample", f"rows {row} and {last}")
            placed.append(Placed(unit, row, positions % length))
    if len(units) > 1:
        starts = [int(p.positions[0]) for p in placed]
        order = sorted(range(len(placed)), key=lambda i: (placed[i].row, starts[i]))
        placed = [placed[i] for i in order]
    return placed


def _grouped(placed: Sequence[Placed], scope: str) -> list[list[Placed]]:
    if scope == "image":
        return [[p] for p in placed]
    rows: dict[int, list[Placed]] = {}
    for p in placed:
        rows.setdefault(p.row, []).append(p)
    return list(rows.values())


def _padded(values: list[list[Tensor]], fill: float) -> Tensor:
    return pad_sequence([torch.cat(v) for v in values], batch_first=True, padding_value=fill)


def decide(stage: Stage, embeds: Tensor, placed: Sequence[Placed], valid: Tensor) -> Decision:
    """Ask the stage about every group and spread its answer over the sequences.

    Args:
        stage: what to do.
        embeds: (b l d), holds the projected features.
        placed: the units in their sequences.
        valid: (b l) True for real tokens.
    """
    groups = _grouped(placed, stage.scope)
    rows = torch.tensor([g[0].row for g in groups], device=embeds.device)
    positions = _padded([[p.patches for p in g] for g in groups], -1)
    mask = (positions >= 0) & valid[rows].gather(1, positions.clamp(min=0))
    positions = torch.where(mask, positions, -1)
    length = valid.shape[1]
    flat = rearrange((rows[:, None] * length + positions).clamp(min=0), "g n -> (g n)")
    x = rearrange(embeds, "b l d -> (b l) d").index_select(0, flat)
    x = rearrange(x, "(g n) d -> g n d", g=len(groups)).masked_fill(~mask[..., None], 0)
    signals = _signals(groups, embeds.device)
    chosen = stage.select(x, mask, signals)
    merged = stage.merge(x, chosen, mask, signals)
    if merged is not None:
        chosen = replace(_anchors(merged), scores=chosen.scores)
    kept = chosen.mask & mask
    over = chosen.scatter(positions, length, rows=rows, valid=_without_lines(valid, groups, kept))
    dropped = bool((valid & ~over.mask).any())
    if merged is not None and dropped:
        embeds = _put_merged(embeds, merged, x, rows[:, None] * length + positions)
    return Decision(chosen, mask, rows, groups, over, dropped, merged, None if merged is None else embeds)


def _signals(groups: list[list[Placed]], device: torch.device) -> dict[str, Tensor | None]:
    """The grid of every group, and what all of its units were read in the vision tower."""
    units = [[p.unit for p in g] for g in groups]
    signals: dict[str, Tensor | None] = {"grid": _padded([[u.grid.to(device) for u in g] for g in units], -1)}
    for name in set.intersection(*(set(u.signals) for g in units for u in g)):
        signals[name] = _padded([[u.signals[name].to(device) for u in g] for g in units], 0.0)
    return signals


def _anchors(merged: Assignment) -> Selection:
    return Selection(merged.anchor.clamp(min=0), merged.valid, merged.n)


def _put_merged(embeds: Tensor, merged: Assignment, x: Tensor, place: Tensor) -> Tensor:
    """``embeds`` (b l d) with the reduced ``x`` (g n d) at the anchors; ``place`` (g n) in (b l)."""
    sequence = rearrange(embeds, "b l d -> 1 (b l) d")
    at = gather_rows(place, merged.anchor.clamp(min=0)).flatten()[None]
    reduced = rearrange(merged.reduce(x), "g k d -> 1 (g k) d")
    return put_rows(sequence, at, merged.valid.flatten()[None], reduced).view(embeds.shape)


def _without_lines(valid: Tensor, groups: list[list[Placed]], kept: Tensor) -> Tensor:
    """``valid`` without the line breaks whose row lost every patch."""
    if all(p.unit.line is None for g in groups for p in g):
        return valid
    valid = valid.clone()
    for i, group in enumerate(groups):
        start = 0
        for p in group:
            stays = kept[i, start : start + p.unit.n]
            start += p.unit.n
            if p.unit.line is None:
                continue
            line, is_patch = p.unit.line.to(valid.device), p.unit.patch.to(valid.device) >= 0
            alive = torch.zeros(p.unit.size + 1, dtype=torch.bool, device=valid.device)
            alive[torch.where(stays, line[is_patch], -1)] = True
            breaks = p.positions[~is_patch]
            valid[p.row, breaks] &= alive[:-1][line[~is_patch]]
    return valid


def traces(place_name: str, decision: Decision) -> tuple[Trace, ...]:
    """One :class:`Trace` per unit."""
    out, image = [], 0
    kept, mass = decision.chosen.mask & decision.mask, _mass(decision)
    for i, group in enumerate(decision.groups):
        start = 0
        for p in group:
            here = slice(start, start + p.unit.n)
            stays = kept[i, here].cpu()
            patch = p.unit.numbers.cpu()
            scores = None if decision.chosen.scores is None else decision.chosen.scores[i, here].detach()
            out.append(
                Trace(
                    stage=place_name,
                    image=image,
                    sample=p.row,
                    kind=p.unit.kind,
                    layer=None,
                    candidates=patch,
                    index=patch[stays],
                    grid=p.unit.grid.cpu()[stays],
                    positions=p.patches.cpu()[stays],
                    scores=scores,
                    mass=mass[i, here].detach().cpu()[stays],
                )
            )
            start += p.unit.n
            image += 1
    return tuple(out)


def _mass(decision: Decision) -> Tensor:
    """(g n) original tokens each kept one stands for."""
    merged, one = decision.merged, torch.ones(decision.mask.shape, device=decision.mask.device)
    return one if merged is None else _anchors(merged).lift(merged.mass.to(one.dtype), into=one)
