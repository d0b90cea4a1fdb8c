"""UniformGrid: exact, even in space, fair between frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.selectors import Random, UniformGrid
from tokenops.selectors.uniform_grid import evenly, lattice
from tokenops.testing.drawing import Draw, hold


def raster(frames: int, rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(s) for s in (frames, rows, columns))).view(1, -1, 3)


def test_bins_have_one_middle_each() -> None:
    for size in range(1, 14):
        for count in range(size + 1):
            rank = torch.arange(size)
            picked, bins = evenly(rank, torch.tensor(size), torch.tensor(count))
            assert rank[picked].tolist() == [(2 * j + 1) * size // (2 * count) for j in range(count)]
            assert bins[picked].tolist() == list(range(count))


@pytest.mark.parametrize(("side", "k", "step"), [(12, 16, 3), (8, 16, 2), (24, 64, 3), (6, 36, 1)])
def test_a_square_number_gives_a_square_lattice(side: int, k: int, step: int) -> None:
    kept = UniformGrid(k)(torch.zeros(1, side * side, 1), grid=raster(1, side, side)).mask.view(side, side)
    lines = torch.arange(step // 2, side, step)
    assert torch.equal(kept.nonzero(), torch.cartesian_prod(lines, lines))


def test_rectangles_need_no_filling_up() -> None:
    def law(draw: Draw) -> None:
        grid = raster(draw.integer(1, 4), draw.integer(1, 9), draw.integer(1, 9))
        k = draw.integer(1, grid.shape[1])
        real = torch.ones(grid.shape[:2], dtype=torch.bool)
        assert int(lattice(grid, real, torch.tensor([[k]])).sum()) == k

    hold(law)


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("size", [(12, 12), (24, 24), (18, 32)])
def test_leaves_smaller_holes_than_chance(size: tuple[int, int], keep: float) -> None:
    grid = raster(1, *size)
    x, place = torch.zeros(1, grid.shape[1], 1), grid[0, :, 1:].double()

    def holes(kept: Tensor) -> Tensor:
        return torch.cdist(place, place[kept]).min(1).values

    ours = holes(UniformGrid(keep)(x, grid=grid).mask[0])
    chance = [holes(Random(keep, seed)(x).mask[0]) for seed in range(10)]
    assert ours.mean() < torch.stack(chance).mean()
    assert ours.max() <= torch.stack(chance).max(1).values.min()


def test_every_frame_and_half_gets_its_share() -> None:
    def law(draw: Draw) -> None:
        frames, side = draw.integer(1, 5), draw.choice(4, 8)
        grid = raster(frames, side, side)
        n = grid.shape[1]
        k = draw.integer(1, n)
        order = draw.permutation(n)
        kept = UniformGrid(k)(torch.zeros(1, n, 1), grid=grid[:, order]).mask[0]
        frame, row, column = grid[0, order].unbind(-1)
        assert int(kept.sum()) == k
        for f in range(frames):
            assert abs(int(kept[frame == f].sum()) - k / frames) < 1
            inside = (frame == f) & kept
            for half in (row < side // 2, column < side // 2):
                lines = inside.sum().item() ** 0.5 + 1
                assert abs(int((inside & half).sum()) - int(inside.sum()) / 2) <= lines

    hold(law)


def test_ragged_rows_are_rows_alone() -> None:
    grid = raster(2, 5, 7).repeat(3, 1, 1)
    mask = torch.rand(3, 70) < torch.tensor([[1.0], [0.6], [0.0]])
    x = torch.zeros(3, 70, 1)
    kept = UniformGrid(0.3)(x, grid=grid.masked_fill(~mask[..., None], -9), mask=mask)
    assert kept.counts.tolist() == [21, int(0.3 * int(mask[1].sum()) + 1e-6), 0]
    for i in range(3):
        alone = UniformGrid(0.3)(x[i : i + 1, mask[i]], grid=grid[i : i + 1, mask[i]])
        assert torch.equal(alone.mask[0], kept.mask[i, mask[i]])


def test_bad_input() -> None:
    x, grid = torch.zeros(1, 4, 2), raster(1, 2, 2)
    for bad in (grid[:, :3], grid[..., :2], grid.float(), grid.to("meta")):
        with pytest.raises(TokenOpsError, match="UniformGrid: grid"):
            UniformGrid(0.5)(x, grid=bad)
    with pytest.raises(TokenOpsError, match="UniformGrid"):
        UniformGrid(0.0)
    assert repr(UniformGrid(0.5)) == "UniformGrid(keep=0.5)"
