"""Painting scenes: background, clutter, digits, and which patches they cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokenops.pocket.glyphs import CANVAS, GlyphStyle, Split, draw_glyph, glyph_bank, ink_box, random_style

IMAGE_SIZE = 96
PATCH = 8
GRID = IMAGE_SIZE // PATCH
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (45, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (235, 220, 50),
    "purple": (190, 60, 215),
    "cyan": (50, 215, 225),
    "orange": (245, 140, 30),
}
COLOUR_NAMES = tuple(COLOURS)
GREY = "grey"
CORE_RADIUS, DECOY_RADIUS = 8.0, 5.7
DECOY_SIZE = 0.6
_BELONGS = 4.0
Box = tuple[int, int, int, int]


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A grey textured background with clutter (96, 96, 3).

    >>> background(np.random.default_rng(0)).shape
    (96, 96, 3)
    """
    image = _texture(rng)
    _clutter(image, rng)
    return np.array(image, dtype=np.float32)


def _texture(rng: np.random.Generator) -> Image.Image:
    """Grey texture: a smooth random field plus grain."""
    cells = int(rng.integers(4, 13))
    coarse = rng.uniform(0, rng.uniform(20, 70), (cells, cells)) + rng.uniform(10, 60)
    field = Image.fromarray(coarse.astype(np.float32)).resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR
    )
    grain = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32) * np.float32(rng.uniform(3, 12))
    grey = np.clip(np.asarray(field) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))


def _clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Draws grey strokes and arcs and small dots, some of them tinted, onto the image."""
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):
        x, y = (int(v) for v in rng.integers(0, IMAGE_SIZE, 2))
        dx, dy = (int(v) for v in rng.integers(-22, 23, 2))
        level, width = int(rng.integers(50, 215)), int(rng.integers(1, 4))
        if rng.random() < 0.5:
            draw.line((x, y, x + dx, y + dy), fill=(level,) * 3, width=width)
        else:
            start = int(rng.integers(0, 360))
            box = (x, y, x + abs(dx) + 4, y + abs(dy) + 4)
            draw.arc(box, start, start + int(rng.integers(80, 300)), fill=(level,) * 3, width=width)
    for _ in range(int(rng.integers(6, 15))):
        x, y = (int(v) for v in rng.integers(0, IMAGE_SIZE, 2))
        radius, mix = int(rng.integers(1, 3)), rng.uniform(0.0, 0.6)
        base = np.array(COLOURS[COLOUR_NAMES[rng.integers(len(COLOURS))]])
        tint = tuple(int(v) for v in base * mix + float(rng.integers(60, 170)) * (1 - mix))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tint)


def paste(
    canvas: NDArray[np.float32],
    label: int,
    colour: str,
    centre: tuple[int, int],
    split: Split,
    rng: np.random.Generator,
) -> tuple[Box, NDArray[np.float32]]:
    """Blends a digit into the canvas (96, 96, 3), centred at (x, y); returns its box and ink (96, 96)."""
    bank = glyph_bank(split)
    style = random_style(rng) if split == "train" else GlyphStyle()
    if colour == GREY:
        style = replace(style, size=DECOY_SIZE * style.size)
    mask = draw_glyph(bank.images[rng.choice(bank.by_class[label])], style)
    left, top, right, bottom = ink_box(mask)
    x = centre[0] - (left + right) // 2
    y = centre[1] - (top + bottom) // 2
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + CANVAS, IMAGE_SIZE), min(y + CANVAS, IMAGE_SIZE)
    alpha = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    if colour == GREY:
        rgb = np.full(3, rng.uniform(130, 215))
    else:
        rgb = (np.array(COLOURS[colour]) + rng.integers(-14, 15, 3)) * rng.uniform(0.85, 1.0)
    window = canvas[y0:y1, x0:x1]
    window += alpha[:, :, None] * (rgb.astype(np.float32) - window)
    ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    ink[y0:y1, x0:x1] = alpha
    box = (max(left + x, 0), max(top + y, 0), min(right + x, IMAGE_SIZE), min(bottom + y, IMAGE_SIZE))
    return box, ink


def patch_maps(
    boxes: list[Box], inks: list[NDArray[np.float32]], radii: list[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(144,) owner of every patch by ink, and (144,) by nearness to a centre within its radius; -1 for none.

    >>> ink = np.zeros((96, 96), np.float32); ink[8:24, 8:24] = 1.0
    >>> by_ink, core = patch_maps([(8, 8, 24, 24)], [ink], [8.0])
    >>> np.flatnonzero(by_ink == 0).tolist(), np.flatnonzero(core == 0).tolist()
    ([13, 14, 25, 26], [13, 14, 25, 26])
    """
    amount = np.stack(inks).reshape(-1, GRID, PATCH, GRID, PATCH).sum((2, 4)).reshape(-1, GRID * GRID)
    belongs = np.where(amount.max(0) >= _BELONGS, amount.argmax(0), -1)
    middle = np.arange(GRID) * PATCH + PATCH / 2
    xs, ys = np.tile(middle, GRID), np.repeat(middle, GRID)
    edges = np.array(boxes, dtype=np.float64)
    centre_x, centre_y = (edges[:, 0] + edges[:, 2]) / 2, (edges[:, 1] + edges[:, 3]) / 2
    distance = np.hypot(xs - centre_x[:, None], ys - centre_y[:, None])
    share = distance / np.array(radii)[:, None]
    core = np.where(share.min(0) <= 1.0, share.argmin(0), -1)
    return belongs.astype(np.int64), core.astype(np.int64)
