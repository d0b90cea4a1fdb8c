"""Reference rankings of the 144 patches that know the truth, against which selectors are judged.

Each function returns scores (scenes, 144), higher is better; :func:`best` takes the k best of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenops.pocket.painting import GRID, PATCH
from tokenops.pocket.scenes import Scene

if TYPE_CHECKING:
    from torch import Tensor


def best(scores: Tensor, k: int) -> Tensor:
    """The k best patches of each row (scenes, k), in image order.

    >>> import torch
    >>> best(torch.tensor([[0.1, 0.9, 0.5]]), 2).tolist()
    [[1, 2]]
    """
    return scores.topk(k, dim=1).indices.sort(dim=1).values


def random_scores(scenes: Sequence[Scene], seed: int = 0) -> Tensor:
    """Uniformly random scores."""
    import torch

    return torch.rand(len(scenes), GRID * GRID, generator=torch.Generator().manual_seed(seed))


def digit_scores(scenes: Sequence[Scene], seed: int = 0) -> Tensor:
    """Random scores, patches with a coloured digit's ink before all others."""
    import torch

    owner = np.stack([scene.patch_digit for scene in scenes])
    asked = np.array([len(scene.digits) for scene in scenes])[:, None]
    on_digit = torch.from_numpy((owner >= 0) & (owner < asked))
    return random_scores(scenes, seed) + on_digit


def oracle_scores(scenes: Sequence[Scene]) -> Tensor:
    """Nearness to the nearest coloured digit's centre, in pixels and negative."""
    import torch

    middle = np.arange(GRID) * PATCH + PATCH / 2
    xs, ys = np.tile(middle, GRID), np.repeat(middle, GRID)
    rows = []
    for scene in scenes:
        centres = np.array([digit.centre for digit in scene.digits])
        rows.append(-np.hypot(xs - centres[:, :1], ys - centres[:, 1:]).min(0))
    return torch.from_numpy(np.stack(rows)).float()
