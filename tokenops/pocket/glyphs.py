"""Real handwritten digits as small alpha masks.

The strokes come from scikit-learn's ``load_digits`` (1,797 images of 8x8 pixels). They are split once, per
class and with a fixed permutation, into about 80 % for training and 20 % held out; no image is in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenops.errors import TokenOpsError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
CANVAS = 28
"""Side of the square a glyph is drawn on, in pixels."""
_PAD = 2
_SOURCE_PEAK = 16.0


@dataclass(frozen=True)
class GlyphBank:
    """The digits of a split: zero-padded ``images`` (n, 12, 12) uint8, row indices ``by_class`` per digit."""

    images: NDArray[np.uint8]
    by_class: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class GlyphStyle:
    """How a glyph is drawn: size of the 8x8 source in pixels, radians, shear, stretch, stroke threshold."""

    size: float = 20.0
    angle: float = 0.0
    shear: float = 0.0
    stretch: float = 1.0
    threshold: float = 0.3


def _load_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "tokenops.pocket draws scikit-learn's handwritten digits: pip install 'tokenops[demo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels).astype(np.int64)


def split_indices(split: Split) -> NDArray[np.int64]:
    """Rows of ``load_digits`` that belong to a split.

    >>> train, heldout = split_indices("train"), split_indices("heldout")
    >>> len(train) + len(heldout), len(set(train) & set(heldout))
    (1797, 0)
    """
    if split not in SPLITS:
        raise TokenOpsError("tokenops.pocket.glyphs", f"a split among {SPLITS}", repr(split))
    labels = _load_digits()[1]
    rng = np.random.default_rng(0)
    chosen = []
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        cut = round(0.2 * len(rows))
        chosen.append(rows[cut:] if split == "train" else rows[:cut])
    return np.sort(np.concatenate(chosen))


@lru_cache(maxsize=2)
def glyph_bank(split: Split) -> GlyphBank:
    """The (cached) digits of a split.

    >>> [len(rows) > 25 for rows in glyph_bank("heldout").by_class] == [True] * 10
    True
    """
    images, labels = _load_digits()
    rows = split_indices(split)
    padded = np.pad(images[rows] / _SOURCE_PEAK * 255.0, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    by_class = tuple(np.flatnonzero(labels[rows] == digit) for digit in range(10))
    return GlyphBank(padded.round().astype(np.uint8), by_class)


def random_style(rng: np.random.Generator) -> GlyphStyle:
    """A training augmentation: scale, slight rotation and shear, stretch and stroke thickness."""
    return GlyphStyle(
        size=rng.uniform(17.5, 22.0),
        angle=rng.uniform(-0.22, 0.22),
        shear=rng.uniform(-0.2, 0.2),
        stretch=rng.uniform(0.88, 1.14),
        threshold=rng.uniform(0.15, 0.48),
    )


def draw_glyph(source: NDArray[np.uint8], style: GlyphStyle) -> NDArray[np.float32]:
    """An alpha mask (28, 28) in [0, 1] of a padded 12x12 digit.

    >>> mask = draw_glyph(glyph_bank("heldout").images[0], GlyphStyle())
    >>> mask.shape, float(mask.max()) > 0.9
    ((28, 28), True)
    """
    scale = style.size / 8.0
    cos, sin = np.cos(style.angle), np.sin(style.angle)
    forward = scale * np.array([[cos, -sin], [sin, cos]])
    forward = forward @ np.array([[style.stretch, style.shear], [0.0, 1.0 / style.stretch]])
    inverse = np.linalg.inv(forward)
    offset = source.shape[0] / 2 - inverse @ np.array([CANVAS / 2, CANVAS / 2])
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    drawn = Image.fromarray(source).transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )
    ink = np.asarray(drawn, dtype=np.float32) / 255.0
    return np.clip((ink - style.threshold) / 0.3, 0.0, 1.0)


def ink_box(mask: NDArray[np.float32], level: float = 0.3) -> tuple[int, int, int, int]:
    """Tight (left, top, right, bottom) box around the ink, right and bottom exclusive.

    >>> mask = np.zeros((5, 5), np.float32); mask[1:3, 2] = 1.0
    >>> ink_box(mask)
    (2, 1, 3, 3)
    """
    columns = np.flatnonzero((mask > level).any(axis=0))
    rows = np.flatnonzero((mask > level).any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
