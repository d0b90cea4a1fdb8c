"""Seeded scenes of coloured handwritten digits among clutter, with questions and answers.

A scene is a 96x96 RGB image, seen as 12x12 = 144 patches of 8x8 pixels. It holds two to four digits, at
most one per quadrant, all of different classes and colours. Every question is answered by one word.

>>> scene = scenes(1, "heldout", seed=3)[0]
>>> scene.image.size, scene.patch_digit.shape, 2 <= len(scene.digits) <= 4
((96, 96), (144,), True)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenops.errors import TokenOpsError
from tokenops.pocket.glyphs import SPLITS, Split
from tokenops.pocket.painting import (
    COLOUR_NAMES,
    COLOURS,
    GRID,
    IMAGE_SIZE,
    PATCH,
    background,
    paste,
    patch_maps,
)

Kind = Literal["what", "where", "count"]
KINDS: tuple[Kind, ...] = ("what", "where", "count")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
_MARGIN = 12


@dataclass(frozen=True)
class Digit:
    """One digit of a scene; ``box`` is (left, top, right, bottom) of its ink in pixels."""

    label: int
    colour: str
    quadrant: str
    box: tuple[int, int, int, int]

    @property
    def word(self) -> str:
        """The digit's name, such as ``seven``."""
        return DIGIT_WORDS[self.label]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Question:
    """A question about a scene: its kind, its words and the one-word answer."""

    kind: Kind
    text: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text to give the processor, image placeholder included."""
        return f"<image> {self.text}"


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    ``patch_digit`` (144,) int64 says to which digit (index into ``digits``) a patch belongs, -1 for none:
    at least four pixels' worth of its ink. ``patch_core`` (144,) is -1 too for all but the patches whose
    middle is within 8 pixels of the digit's centre.
    """

    image: Image.Image
    digits: tuple[Digit, ...]
    patch_digit: NDArray[np.int64]
    patch_core: NDArray[np.int64]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as a (96, 96, 3) array."""
        return np.asarray(self.image)

    @property
    def centre_patches(self) -> tuple[int, ...]:
        """For each digit the patch (0..143, row-major) that holds its centre."""
        return tuple(int(y // PATCH) * GRID + int(x // PATCH) for x, y in (d.centre for d in self.digits))

    def questions(self) -> tuple[Question, ...]:
        """All questions with their answers: what and where once per digit, then how many.

        >>> scenes(1, "heldout", seed=0)[0].questions()[-1].text
        'how many digits ?'
        """
        what = [Question("what", f"what digit is {d.colour} ?", d.word) for d in self.digits]
        where = [Question("where", f"where is {d.word} ?", d.quadrant) for d in self.digits]
        return (*what, *where, Question("count", "how many digits ?", DIGIT_WORDS[len(self.digits)]))


@dataclass(frozen=True)
class _Plan:
    """What to paint, one entry per digit: labels, colour indices and centres (x, y)."""

    labels: tuple[int, ...]
    colours: tuple[int, ...]
    centres: tuple[tuple[int, int], ...]


def _scene_plan(rng: np.random.Generator) -> _Plan:
    number = int(rng.integers(2, 5))
    labels, colours = rng.permutation(10)[:number], rng.permutation(len(COLOURS))[:number]
    half = IMAGE_SIZE // 2
    places = rng.permutation(4)[:number]
    inside = rng.integers(_MARGIN, half - _MARGIN + 1, (number, 2))
    centres = [
        (int(x + half * (q % 2)), int(y + half * (q // 2))) for (x, y), q in zip(inside, places, strict=True)
    ]
    return _Plan(tuple(map(int, labels)), tuple(map(int, colours)), tuple(centres))


def _crowd_plan(rng: np.random.Generator) -> _Plan:
    cells = rng.permutation(9)[: int(rng.integers(7, 10))]
    jitter = rng.integers(12, 21, (len(cells), 2))
    centres = [
        (int(x + 32 * (c % 3)), int(y + 32 * (c // 3))) for (x, y), c in zip(jitter, cells, strict=True)
    ]
    labels, colours = rng.integers(0, 10, len(cells)), rng.integers(0, len(COLOURS), len(cells))
    return _Plan(tuple(map(int, labels)), tuple(map(int, colours)), tuple(centres))


def _paint(plan: _Plan, split: Split, rng: np.random.Generator) -> Scene:
    canvas = background(rng)
    digits, boxes, inks = [], [], []
    for label, colour, centre in zip(plan.labels, plan.colours, plan.centres, strict=True):
        box, ink = paste(canvas, label, COLOUR_NAMES[colour], centre, split, rng)
        quadrant = QUADRANTS[2 * (centre[1] >= IMAGE_SIZE // 2) + (centre[0] >= IMAGE_SIZE // 2)]
        digits.append(Digit(label, COLOUR_NAMES[colour], quadrant, box))
        boxes.append(box)
        inks.append(ink)
    belongs, core = patch_maps(boxes, inks)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return Scene(image, tuple(digits), belongs, core)


def make_scene(split: Split, seed: tuple[int, ...], crowd: bool = False) -> Scene:
    """The scene of a seed: augmented digits for training, the held-out ones as they are.

    With ``crowd`` seven to nine digits stand in a loose 3x3 grid and classes and colours may repeat: no
    questions make sense there, but a vision tower learns from three times as many digits.

    >>> a, b = make_scene("train", (1, 2)), make_scene("train", (1, 2))
    >>> a.digits == b.digits and bool((a.pixels == b.pixels).all())
    True
    """
    if split not in SPLITS:
        raise TokenOpsError("tokenops.pocket.make_scene", f"a split among {SPLITS}", repr(split))
    rng = np.random.default_rng((SPLITS.index(split), *seed))
    return _paint(_crowd_plan(rng) if crowd else _scene_plan(rng), split, rng)


def stream(split: Split, seed: int) -> Iterator[Scene]:
    """Endless scenes of a split; the i-th depends on the seed and i only."""
    return (make_scene(split, (seed, index)) for index in count())


def scenes(n: int, split: Split, seed: int) -> list[Scene]:
    """The first n scenes of a split and seed.

    >>> [s.digits for s in scenes(2, "train", 5)] == [s.digits for s in scenes(9, "train", 5)[:2]]
    True
    """
    if n < 0 or seed < 0:
        raise TokenOpsError("tokenops.pocket.scenes", "n >= 0 and seed >= 0", f"n={n}, seed={seed}")
    return list(islice(stream(split, seed), n))
