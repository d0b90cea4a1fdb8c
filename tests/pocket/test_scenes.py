"""Scenes: reproducible, split without overlap, and true to their questions."""

from __future__ import annotations

import numpy as np
import pytest

from tokenops.errors import TokenOpsError
from tokenops.pocket.glyphs import GlyphStyle, draw_glyph, glyph_bank, random_style, split_indices
from tokenops.pocket.painting import COLOURS, GRID, PATCH
from tokenops.pocket.scenes import DIGIT_WORDS, QUADRANTS, make_scene, practice_scene, scenes


def test_same_seed_same_scenes():
    for a, b in zip(scenes(5, "train", 3), scenes(8, "train", 3), strict=False):
        assert a.digits == b.digits
        assert (a.pixels == b.pixels).all()
        assert (a.patch_digit == b.patch_digit).all()


def test_seeds_and_splits_differ():
    assert not (make_scene("train", (0, 0)).pixels == make_scene("train", (1, 0)).pixels).all()
    assert not (make_scene("train", (0, 0)).pixels == make_scene("heldout", (0, 0)).pixels).all()


def test_splits_share_no_image():
    train, held_out = set(split_indices("train")), set(split_indices("heldout"))
    assert not train & held_out
    assert train | held_out == set(range(1797))
    assert 0.78 < len(train) / 1797 < 0.82
    pixels = {image.tobytes() for image in glyph_bank("train").images}
    assert not pixels & {image.tobytes() for image in glyph_bank("heldout").images}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_scene_is_consistent(split):
    counts = set()
    for scene in scenes(60, split, 11):
        number = len(scene.digits)
        counts.add(number)
        assert scene.image.size == (96, 96)
        assert len({d.label for d in scene.digits}) == len({d.colour for d in scene.digits}) == number
        assert len({d.quadrant for d in scene.digits}) == number
        for index, (digit, patch) in enumerate(zip(scene.digits, scene.centre_patches, strict=True)):
            x, y = digit.centre
            assert digit.quadrant == QUADRANTS[2 * (y >= 48) + (x >= 48)]
            assert scene.patch_core[patch] == index
            assert 1 <= (scene.patch_core == index).sum() <= 5
            assert (scene.patch_digit == index).any()
    assert counts == {2, 3, 4}


def test_patch_map_covers_the_colour():
    scene = scenes(1, "heldout", 4)[0]
    for index, digit in enumerate(scene.digits):
        on = np.flatnonzero(scene.patch_digit == index)
        blocks = (
            scene.pixels.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(144, -1, 3)
        )
        distance = np.abs(blocks[on].astype(int) - np.array(COLOURS[digit.colour])).sum(-1).min(1)
        assert (distance < 150).all()


def test_questions_follow_from_the_scene():
    for scene in scenes(20, "heldout", 5):
        questions = scene.questions()
        assert len(questions) == 2 * len(scene.digits) + 1
        by_colour = {d.colour: d for d in scene.digits}
        by_word = {d.word: d for d in scene.digits}
        for question in questions:
            words = question.text.split()
            if question.kind == "what":
                assert question.answer == by_colour[words[3]].word
            elif question.kind == "where":
                assert question.answer == by_word[words[2]].quadrant
            else:
                assert question.answer == DIGIT_WORDS[len(scene.digits)]


def test_augmentation_changes_training_digits_only():
    source = glyph_bank("train").images[0]
    rng = np.random.default_rng(0)
    assert not np.array_equal(draw_glyph(source, random_style(rng)), draw_glyph(source, random_style(rng)))
    assert np.array_equal(draw_glyph(source, GlyphStyle()), draw_glyph(source, GlyphStyle()))


def test_decoys_are_grey_and_of_other_classes():
    counts = []
    for scene in scenes(40, "heldout", 6):
        assert {d.colour for d in scene.decoys} <= {"grey"}
        assert not {d.label for d in scene.decoys} & {d.label for d in scene.digits}
        everything = scene.digits + scene.decoys
        for i, a in enumerate(everything):
            for b in everything[:i]:
                close = np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1])
                assert close > 7
        assert set(scene.patch_digit) <= set(range(-1, len(everything)))
        counts.append(len(scene.decoys))
    assert np.mean(counts) > 14
    assert max(counts) <= 24


def test_practice_scenes_are_full_and_anything_else_in_turn():
    decoys = [len(practice_scene(2, index).decoys) for index in range(8)]
    assert decoys[1::2] == [0, 1, 2, 3]
    assert min(decoys[::2]) > 12


def test_bad_input_is_named():
    with pytest.raises(TokenOpsError, match="split"):
        scenes(1, "test", 0)  # type: ignore[arg-type]
    with pytest.raises(TokenOpsError, match="n >= 0"):
        scenes(-1, "train", 0)
    with pytest.raises(TokenOpsError, match="0 to 24 decoys"):
        make_scene("train", (0,), decoys=-1)
