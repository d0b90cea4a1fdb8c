"""Seeded scenes of coloured handwritten digits among clutter, with questions and answers.

A scene is a 96x96 RGB image, seen as 12x12 = 144 patches of 8x8 pixels. It holds two to four coloured digits,
at most one per quadrant, all of different classes and colours, and up to 24 grey decoys: smaller handwritten
digits of other classes, about which nobody asks. So what there is and what matters are two things, and a
selector has to know the difference. Every question is answered by one word.

>>> scene = scenes(1, "heldout", seed=3)[0]
>>> scene.image.size, scene.patch_digit.shape, 2 <= len(scene.digits) <= 4
((96, 96), (144,), True)
"""

from __future__ import annotations

import math
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
    CORE_RADIUS,
    DECOY_RADIUS,
    GREY,
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
DECOYS = 24
AWAY, APART = 16.0, 12.0
_MARGIN, _EDGE = 12, 7


@dataclass(frozen=True)
class Digit:
    """One digit of a scene; ``box`` is (left, top, right, bottom) of its ink in pixels; decoys are grey.

    >>> digit = Digit(7, "red", "topleft", (10, 10, 30, 34))
    >>> digit.word, digit.centre
    ('seven', (20.0, 22.0))
    """

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
    """A question about a scene: its kind, its words and the one-word answer.

    >>> Question("what", "what digit is red ?", "seven").prompt
    '<image> what digit is red ?'
    """

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

    ``patch_digit`` (144,) int64 says to which digit a patch belongs, as an index into ``digits + decoys``, -1
    for none: at least four pixels' worth of its ink. ``patch_core`` (144,) is -1 too for all but the patches
    whose middle is within 8 pixels of the digit's centre, 5.7 of a decoy's.

    >>> scene = make_scene("heldout", (1, 0))
    >>> scene.pixels.shape, len(scene.centre_patches) == len(scene.digits)
    ((96, 96, 3), True)
    """

    image: Image.Image
    digits: tuple[Digit, ...]
    decoys: tuple[Digit, ...]
    patch_digit: NDArray[np.int64]
    patch_core: NDArray[np.int64]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as a (96, 96, 3) array."""
        return np.asarray(self.image)

    @property
    def centre_patches(self) -> tuple[int, ...]:
        """For each coloured digit the patch (0..143, row-major) that holds its centre."""
        return tuple(int(y // PATCH) * GRID + int(x // PATCH) for x, y in (d.centre for d in self.digits))

    def questions(self) -> tuple[Question, ...]:
        """All questions with their answers: what and where once per digit, then how many.

        >>> scenes(1, "heldout", seed=0)[0].questions()[-1].text
        'how many coloured digits ?'
        """
        what = [Question("what", f"what digit is {d.colour} ?", d.word) for d in self.digits]
        where = [Question("where", f"where is {d.word} ?", d.quadrant) for d in self.digits]
        count_ = Question("count", "how many coloured digits ?", DIGIT_WORDS[len(self.digits)])
        return (*what, *where, count_)


Place = tuple[int, int]


@dataclass(frozen=True)
class _Plan:
    """What to paint: classes, colours and centres (x, y) of the digits, classes and centres of the decoys."""

    labels: tuple[int, ...]
    colours: tuple[str, ...]
    centres: tuple[Place, ...]
    decoys: tuple[tuple[int, Place], ...]


def _plan(decoys: int, rng: np.random.Generator) -> _Plan:
    number = int(rng.integers(2, 5))
    labels, colours = rng.permutation(10), rng.permutation(len(COLOUR_NAMES))[:number]
    half = IMAGE_SIZE // 2
    places = rng.permutation(4)[:number]
    inside = rng.integers(_MARGIN, half - _MARGIN + 1, (number, 2))
    centres = [
        (int(x + half * (q % 2)), int(y + half * (q // 2))) for (x, y), q in zip(inside, places, strict=True)
    ]
    classes = rng.choice(labels[number:], DECOYS)
    places_left = _gaps(centres, decoys, rng)
    return _Plan(
        tuple(map(int, labels[:number])),
        tuple(COLOUR_NAMES[c] for c in colours),
        tuple(centres),
        tuple((int(label), place) for label, place in zip(classes, places_left, strict=False)),
    )


def _gaps(taken: list[Place], number: int, rng: np.random.Generator) -> list[Place]:
    """Up to ``number`` places at least AWAY pixels from everything taken and APART from each other."""
    places: list[Place] = []
    for x, y in rng.integers(_EDGE, IMAGE_SIZE - _EDGE + 1, (400, 2)).tolist():
        if len(places) == number:
            break
        free = all(math.hypot(x - a, y - b) >= AWAY for a, b in taken)
        if free and all(math.hypot(x - a, y - b) >= APART for a, b in places):
            places.append((x, y))
    return places


def _paint(plan: _Plan, split: Split, rng: np.random.Generator) -> Scene:
    canvas = background(rng)
    digits = list(zip(plan.labels, plan.colours, plan.centres, strict=True))
    decoys = [(label, GREY, centre) for label, centre in plan.decoys]
    painted: dict[int, tuple[Digit, NDArray[np.float32]]] = {}
    # decoys first: where ink meets, the coloured digit lies on top
    for number, (label, colour, centre) in sorted(enumerate(digits + decoys), key=lambda item: -item[0]):
        box, ink = paste(canvas, label, colour, centre, split, rng)
        quadrant = QUADRANTS[2 * (centre[1] >= IMAGE_SIZE // 2) + (centre[0] >= IMAGE_SIZE // 2)]
        painted[number] = Digit(label, colour, quadrant, box), ink
    all_digits = tuple(painted[number][0] for number in range(len(painted)))
    inks = [painted[number][1] for number in range(len(painted))]
    radii = [DECOY_RADIUS if digit.colour == GREY else CORE_RADIUS for digit in all_digits]
    belongs, core = patch_maps([digit.box for digit in all_digits], inks, radii)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return Scene(image, all_digits[: len(digits)], all_digits[len(digits) :], belongs, core)


def make_scene(split: Split, seed: tuple[int, ...], decoys: int = DECOYS) -> Scene:
    """The scene of a seed: augmented digits for training, the held-out ones as they are.

    Raises:
        TokenOpsError: an unknown split, decoys outside 0 to 24.

    >>> a, b = make_scene("train", (1, 2)), make_scene("train", (1, 2))
    >>> a.digits == b.digits and bool((a.pixels == b.pixels).all())
    True
    """
    if split not in SPLITS or not 0 <= decoys <= DECOYS:
        expected = f"a split among {SPLITS} and 0 to {DECOYS} decoys"
        raise TokenOpsError("tokenops.pocket.make_scene", expected, f"{split!r}, {decoys}")
    rng = np.random.default_rng((SPLITS.index(split), *seed))
    return _paint(_plan(decoys, rng), split, rng)


def practice_scene(seed: int, index: int) -> Scene:
    """A scene to train the model on: every other one with all decoys, the others with 0 to 24 in turn.

    With all decoys in every picture "where" is not learned from scratch.

    >>> [len(practice_scene(0, index).decoys) for index in (1, 3, 5)]
    [0, 1, 2]
    """
    some = index // 2 % (DECOYS + 1)
    return make_scene("train", (seed, index), some if index % 2 else DECOYS)


def stream(split: Split, seed: int) -> Iterator[Scene]:
    """Endless scenes of a split; the i-th depends on the seed and i only.

    Raises:
        TokenOpsError: an unknown split, with the first scene.

    >>> next(stream("heldout", 3)).digits == scenes(1, "heldout", 3)[0].digits
    True
    """
    return (make_scene(split, (seed, index)) for index in count())


def scenes(n: int, split: Split, seed: int) -> list[Scene]:
    """The first n scenes of a split and seed.

    Raises:
        TokenOpsError: an unknown split, n or seed below 0.

    >>> [s.digits for s in scenes(2, "train", 5)] == [s.digits for s in scenes(9, "train", 5)[:2]]
    True
    """
    if n < 0 or seed < 0:
        raise TokenOpsError("tokenops.pocket.scenes", "n >= 0 and seed >= 0", f"n={n}, seed={seed}")
    return list(islice(stream(split, seed), n))
