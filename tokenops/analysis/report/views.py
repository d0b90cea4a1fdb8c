"""What the vision tower was shown: pictures made of the processor's own output, and where tokens lie on them.

A picture of what went in cannot be off by a resize, a crop or a pad: whatever the processor did is in it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations import Trace, layouts
from tokenops.integrations.families import Parts

LONGEST, SMALL = 1024, 128
"""Longest side of a picture in the page; up to the second, pictures keep every pixel (PNG)."""


@dataclass(frozen=True, eq=False)
class View:
    """One picture and the tokens on it.

    Attributes:
        title: which one of several.
        pixels: (h w 3) uint8.
        rows, columns: of equal cells, a token each or none.
        tiles: (first number of a token's grid, row, column of its corner) of every part.
    """

    title: str
    pixels: Tensor
    rows: int
    columns: int
    tiles: tuple[tuple[int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, the picture as a data address."""
        height, width = self.pixels.shape[:2]
        return {
            "title": self.title,
            "picture": data_address(self.pixels),
            "width": width,
            "height": height,
            "rows": self.rows,
            "columns": self.columns,
            "tiles": [list(tile) for tile in self.tiles],
        }


@dataclass(frozen=True)
class Shown:
    """The inputs of one call, and what turns its numbers back into colours."""

    parts: Parts
    inputs: Mapping[str, Any]
    processor: Any

    def colours(self, values: Tensor, kind: str) -> Tensor:
        """(... 3 h w) as the tower gets them -> (... h w 3) uint8."""
        how = self.processor.video_processor if kind == "video" else self.processor.image_processor
        values = values.detach().float().cpu()
        if how.do_normalize:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.image_mean, how.image_std))
            values = values * std + mean
        if how.do_rescale or how.do_normalize:
            values = values * 255
        return rearrange(values, "... c h w -> ... h w c").round().clamp(0, 255).to(torch.uint8)


def data_address(pixels: Tensor, longest: int = LONGEST) -> str:
    """``pixels`` (h w 3) uint8 as a ``data:`` address: a PNG if small, else a JPEG of ``longest`` at most.

    >>> data_address(torch.zeros(2, 2, 3, dtype=torch.uint8))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    image, file = Image.fromarray(pixels.numpy()), io.BytesIO()
    small = max(image.size) <= SMALL
    image.thumbnail((longest, longest))
    image.save(file, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def views(shown: Shown, every: Trace, number: int) -> tuple[View, ...]:
    """The pictures of image or video ``number`` of its kind, all of whose tokens are in ``every``.

    Raises:
        TokenOpsError: a family with a layout of its own, which nobody here can draw.
    """
    layout = shown.parts.family.layout
    if layout not in _VIEWS:
        known = ", ".join(made.__name__ for made in _VIEWS)
        raise TokenOpsError("report", f"a family whose layout is among {known}", shown.parts.family.name)
    return _VIEWS[layout](shown, every, number)


def _square(shown: Shown, every: Trace, number: int) -> tuple[View, ...]:
    values = shown.inputs["pixel_values"][number]
    if shown.inputs.get("image_sizes") is not None:
        height, width = (int(n) for n in shown.inputs["image_sizes"][number])
        values = values[:, :height, :width]
    rows, columns = (int(n) + 1 for n in every.grid[:, 1:].amax(0))
    return (View("", shown.colours(values, "image"), rows, columns, ((0, 0, 0),)),)


def _anyres(shown: Shown, every: Trace, number: int) -> tuple[View, ...]:
    """The whole image, squeezed into a square, and its crops put together again."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    config = shown.parts.base.config
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    size = [int(n) for n in shown.inputs["image_sizes"][number]]
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
    values = shown.inputs["pixel_values"][number]
    whole = View("whole image", shown.colours(values[0], "image"), side, side, ((0, 0, 0),))
    joined = rearrange(
        values[1 : 1 + down * across], "(down across) c h w -> c (down h) (across w)", down=down
    )
    tiles = tuple((1 + i, i // across * side, i % across * side) for i in range(down * across))
    title = f"{down} x {across} crops"
    return whole, View(title, shown.colours(joined, "image"), down * side, across * side, tiles)


def _grids(shown: Shown, every: Trace, number: int) -> tuple[View, ...]:
    """A picture for every step in time, the first of its frames."""
    visual, video = shown.parts.base.visual, every.kind == "video"
    merge, config = visual.spatial_merge_size, visual.config
    grids = shown.inputs[f"{every.kind}_grid_thw"]
    start = int(grids[:number].prod(1).sum())
    t, h, w = (int(n) for n in grids[number])
    values = shown.inputs["pixel_values_videos" if video else "pixel_values"][start : start + t * h * w]
    frames = rearrange(
        values,
        "(t gh gw mh mw) (c f ph pw) -> t f c (gh mh ph) (gw mw pw)",
        t=t,
        gh=h // merge,
        mh=merge,
        mw=merge,
        f=config.temporal_patch_size,
        ph=config.patch_size,
        pw=config.patch_size,
    )[:, 0]
    pixels, each = shown.colours(frames, every.kind), config.temporal_patch_size
    return tuple(
        View(
            f"frames {step * each} to {step * each + each - 1}" if video else "",
            pixels[step],
            h // merge,
            w // merge,
            ((step, 0, 0),),
        )
        for step in range(t)
    )


_VIEWS: dict[Any, Callable[[Shown, Trace, int], tuple[View, ...]]] = {
    layouts.square: _square,
    layouts.anyres: _anyres,
    layouts.grid_thw: _grids,
}
