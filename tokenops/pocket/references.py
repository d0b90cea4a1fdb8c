"""Reference rankings of the 144 patches, against which a trained scorer is judged.

Each function returns scores (scenes, 144), higher is better; :func:`best` takes the k best of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenops.pocket.evaluate import visual_features
from tokenops.pocket.painting import GRID, PATCH
from tokenops.pocket.scenes import Scene

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


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


def uniform_keep(scenes: Sequence[Scene], k: int) -> Tensor:
    """An even grid of k patches (scenes, k), the same for every scene: rows as evenly filled as k allows.

    >>> uniform_keep([None], 4).tolist()
    [[39, 45, 111, 117]]
    """
    import torch

    lines = max(1, round(k**0.5))
    per_line = [k // lines + (line < k % lines) for line in range(lines)]
    keep = [
        int((line + 0.5) * GRID / lines) * GRID + int((column + 0.5) * GRID / number)
        for line, number in enumerate(per_line)
        for column in range(number)
    ]
    return torch.tensor(keep).expand(len(scenes), -1)


def model_scores(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Norms of the projected features and CLS attention of the last tower layer, mean over heads."""
    import torch

    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    norms, attention = [], []
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        for start in range(0, len(scenes), batch_size):
            images = [scene.image for scene in scenes[start : start + batch_size]]
            pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"].to(
                model.dtype
            )
            norms.append(visual_features(model, pixels).float().norm(dim=-1))
            last = tower(pixels, output_attentions=True).attentions[-1]
            attention.append(last[:, :, 0, 1:].float().mean(1))
    tower.set_attn_implementation(before)
    return torch.cat(norms), torch.cat(attention)
