"""One forward of a vision transformer: which patches run in each block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.vit.parts import normed
from tokenops.routers.route import Route
from tokenops.routers.units import Units
from tokenops.signals import needs
from tokenops.stages import Stage
from tokenops.tokenmap import Assignment, Selection


class Call:
    """The state of one forward; rows of the batch are images and all keep equally many patches.

    Args:
        stage: what happens before the first block, or None.
        route: what happens around the blocks, or None.
        prefix: tokens before the patches, which always run.
        grid: rows and columns of patches.
    """

    def __init__(self, stage: Stage | None, route: Route | None, prefix: int, grid: tuple[int, int]) -> None:
        self.stage, self.route, self.prefix, self.grid = stage, route, prefix, grid
        self.n = self.entered = self.left = grid[0] * grid[1]
        self.batch = 0
        self.units: Units | None = None
        self.first: Selection | None = None
        self.mass: Tensor | None = None
        self.gone: Selection | None = None
        self.before: dict[int, Selection | None] = {}
        self.ran: dict[int, Selection | None] = {}
        self.rows: dict[int, dict[str, Tensor]] = {}

    # -- before the first block ---------------------------------------------------------------------------

    def enter(self, x: Tensor) -> Tensor:
        """Ask the stage about the embedded patches of x (b n d); they come back with what was merged."""
        if x.shape[1] != self.prefix + self.n:
            h, w = self.grid
            expected = f"{self.prefix} + {h} × {w} tokens (no patch dropout)"
            raise TokenOpsError("attach", expected, x.shape[1])
        self.batch = x.shape[0]
        x = x if self.stage is None else self._reduce(self.stage, x)
        self.units = None if self.route is None else self._count(x.device)
        return x

    def _reduce(self, stage: Stage, x: Tensor) -> Tensor:
        patches = x[:, self.prefix :]
        signals: dict[str, Tensor | None] = {"grid": self.coordinates(x.device).expand(len(x), -1, -1)}
        mask = all_real(stage, patches)
        chosen = stage.select(patches, mask, signals)
        if chosen.gate is not None:
            raise TokenOpsError("attach", "a selector without a relaxation (or model.eval())", "a soft mask")
        merged = stage.merge(patches, chosen, mask, signals)
        if merged is not None:
            chosen = replace(anchors(merged), scores=chosen.scores)
        _check_even(chosen)
        self.first = chosen
        self.entered = self.left = chosen.k
        if chosen.k == self.n:
            return x
        self.gone = self._whole(chosen)
        if merged is None:
            return x
        self.mass = chosen.lift(merged.mass.float(), into=torch.ones(len(x), self.n, device=x.device))
        there = chosen.lift(merged.reduce(patches), into=patches)
        return torch.cat([x[:, : self.prefix], there], 1)

    def coordinates(self, device: torch.device) -> Tensor:
        """(1 n 3) long, (0, row, column) of every patch."""
        place = torch.arange(self.n, device=device)
        return torch.stack([torch.zeros_like(place), place // self.grid[1], place % self.grid[1]], 1)[None]

    def _whole(self, chosen: Selection) -> Selection:
        """The choice among patches as one among all tokens."""
        first = torch.arange(self.prefix, device=chosen.index.device).expand(self.batch, -1)
        index = torch.cat([first, chosen.index + self.prefix], 1)
        return Selection(index, torch.ones_like(index, dtype=torch.bool), self.prefix + self.n)

    # -- around a block -----------------------------------------------------------------------------------

    def drops(self, layer: int) -> bool:
        """Whether some patches that are there stay out of a block from here on."""
        if self.route is None:
            return False
        return self.route.counts(layer, (self.entered,))[0] < self.left

    def choose(self, layer: int, block: Any, x: Tensor) -> Selection | None:
        """The tokens that run in a block, None for all.

        A block that checkpointing replays asks the scorer again, so that random numbers repeat as well, and
        keeps its first answer.
        """
        again = layer in self.ran
        gone = self.before.setdefault(layer, self.gone)
        asked = self.ran[layer] is not gone if again else self.drops(layer)
        chosen = self.ask(layer, block, x, gone) if asked else gone
        if again:
            return self.ran[layer]
        self.ran[layer] = chosen
        if asked and chosen is not None and self.route is not None and self.route.fate == "exit":
            self.gone, self.left = chosen, chosen.k - self.prefix
        return chosen

    @torch.no_grad()
    def ask(self, layer: int, block: Any, x: Tensor, gone: Selection | None) -> Selection:
        """The route's choice among the tokens of x (b n d) that are not ``gone``."""
        assert self.route is not None
        assert self.units is not None
        signals: dict[str, Any] = dict(self.rows.get(layer, {}))
        if "grid" in self.route.needs():
            patches = self.coordinates(x.device)
            prefix = patches.new_full((1, self.prefix, 3), -1)
            signals["grid"] = torch.cat([prefix, patches], 1).expand(self.batch, -1, -1)
        count = self.route.counts(layer, (self.entered,))[0]
        chosen, _ = self.route.split(
            normed(block, x),
            layer=layer,
            units=self.units,
            alive=None if gone is None else gone.mask,
            k=self.prefix + count,
            **signals,
        )
        return chosen

    def _count(self, device: torch.device) -> Units:
        """Every row an image; nothing is read from the device."""
        row = torch.arange(self.batch, device=device)[:, None]
        place = torch.arange(self.prefix + self.n, device=device)[None]
        unit = torch.where(place < self.prefix, -1, row)
        places = (place + row * (self.prefix + self.n))[:, self.prefix :]
        sizes, rows = (self.entered,) * self.batch, tuple(range(self.batch))
        return Units(unit, None, places, torch.ones_like(places, dtype=torch.bool), sizes, rows)

    # -- after the last block -----------------------------------------------------------------------------

    def leave(self, features: Tensor) -> Tensor:
        """Features (b n d) without the patches that left for good."""
        return features if self.gone is None else self.gone.reduce(features)


def all_real(stage: Stage, x: Tensor) -> Tensor | None:
    """A mask without padding for components that insist on one; without it, counts need not be read."""
    parts = (stage.selector, getattr(stage, "merger", None))
    if any(part is not None and needs(part).get("mask") for part in parts):
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return None


def anchors(merged: Assignment) -> Selection:
    """The tokens that stand for the groups."""
    return Selection(merged.anchor.clamp(min=0), merged.valid, merged.n)


def _check_even(chosen: Selection) -> None:
    """Rows that keep different numbers would need a mask, and prefix tokens would not stay in front."""
    if torch.compiler.is_compiling():
        return
    if chosen.valid.is_cuda:  # reads nothing back
        torch.ops.aten._assert_async.msg(chosen.valid.all(), "attach: as many patches in every image")
    elif not bool(chosen.valid.all()):
        raise TokenOpsError("attach", "as many patches in every image", chosen.counts.tolist())
