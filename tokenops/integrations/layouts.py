"""Where the visual tokens of one image or video lie: patch numbers, grid coordinates, line breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError


@dataclass(eq=False)
class Unit:
    """One image or video as it enters the language model.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        patch: (p) long, the patch each placeholder stands for; -1 for a line break.
        grid: (n 3) long, (frame or crop, row, column) of every patch in placeholder order.
        line: (p) long or None. A line break stays iff a patch with its line number stays; -1 for patches
            without one.
        crops: how often the vision tower looked at it.
        signals: what was read in the vision tower, name -> (n ...) in placeholder order.
    """

    kind: str
    patch: Tensor
    grid: Tensor
    line: Tensor | None = None
    crops: int = 1
    signals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Placeholders in the sequence, line breaks included."""
        return self.patch.shape[0]

    @property
    def n(self) -> int:
        """Patches, the tokens a selector chooses from."""
        return self.grid.shape[0]

    @property
    def numbers(self) -> Tensor:
        """(n) long, the number of every patch in placeholder order."""
        return self.patch[self.patch >= 0]


_CLS = torch.tensor([[0, -1, -1]])
Layout = Callable[[Any, Mapping[str, Any], Sequence[Tensor], str], list[Unit]]


def _raster(frames: int, rows: int, columns: int) -> Tensor:
    axes = [torch.arange(size) for size in (frames, rows, columns)]
    return torch.cartesian_prod(*axes).view(-1, 3)


def square(base: Any, call: Mapping[str, Any], features: Sequence[Tensor], kind: str) -> list[Unit]:
    """LLaVA-1.5: a square grid per image, or ``image_sizes`` in patches where the tower takes them."""
    units = []
    for i, feature in enumerate(features):
        size = feature.shape[0]
        side = math.isqrt(size)
        if call.get("image_sizes") is not None:
            patch = base.vision_tower.patch_size
            rows, columns = (int(s) // patch for s in call["image_sizes"][i])
            grid = _raster(1, rows, columns)
        elif side * side == size:
            grid = _raster(1, side, side)
        else:  # the "full" feature strategy: the CLS token first
            side = math.isqrt(size - 1)
            grid = torch.cat([_CLS, _raster(1, side, side)])
        if grid.shape[0] != size:
            raise TokenOpsError("layout", f"{grid.shape[0]} features in image {i}", size)
        units.append(Unit(kind, torch.arange(size), grid))
    return units


def grid_thw(base: Any, call: Mapping[str, Any], features: Sequence[Tensor], kind: str) -> list[Unit]:
    """Qwen-VL: ``<kind>_grid_thw`` in patches, merged ``spatial_merge_size`` to one in both directions."""
    merge = base.visual.spatial_merge_size
    units = []
    for (t, h, w), feature in zip(call[f"{kind}_grid_thw"].tolist(), features, strict=True):
        grid = _raster(t, h // merge, w // merge)
        if grid.shape[0] != feature.shape[0]:
            raise TokenOpsError("layout", f"{grid.shape[0]} features for grid {(t, h, w)}", feature.shape[0])
        units.append(Unit(kind, torch.arange(grid.shape[0]), grid))
    return units


def anyres(base: Any, call: Mapping[str, Any], features: Sequence[Tensor], kind: str) -> list[Unit]:
    """LLaVA-NeXT: a base view and crops, unpadded, with a line break after every row of the crops.

    Patch numbers run through the model's own ``pack_image_features`` in place of features, so its rules for
    unpadding are never repeated here. A patch is numbered ``crop * patches_per_crop + row * side + column``.
    """
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    vision = base.config.vision_config
    side = vision.image_size // vision.patch_size
    strategy = call.get("vision_feature_select_strategy") or base.config.vision_feature_select_strategy
    extra = 0 if strategy == "default" else 1
    sizes = call["image_sizes"].cpu() if isinstance(call["image_sizes"], Tensor) else call["image_sizes"]
    per_crop = side * side + extra
    crops = [image_size_to_num_patches(s, base.config.image_grid_pinpoints, vision.image_size) for s in sizes]
    numbers = [torch.arange(c * per_crop, dtype=torch.float64).view(c, per_crop, 1) for c in crops]
    packed, _ = base.pack_image_features(
        numbers, sizes, vision_feature_select_strategy=strategy, image_newline=torch.tensor([-1.0])
    )
    one_crop = torch.cat([_CLS] * extra + [_raster(1, side, side)])
    units = []
    for patch, feature, count in zip(packed, features, crops, strict=True):
        patch = patch.flatten().long()
        if patch.shape[0] != feature.shape[0]:
            raise TokenOpsError(
                "layout", f"{patch.shape[0]} features in image {len(units)}", feature.shape[0]
            )
        number = patch[patch >= 0]
        grid = one_crop[number % per_crop].clone()
        grid[:, 0] = number // per_crop
        line = (patch < 0).long().cumsum(0) - (patch < 0).long()
        if count > 1:
            line[(patch >= 0) & (patch < per_crop)] = -1
        units.append(Unit(kind, patch, grid, line, count))
    return units
