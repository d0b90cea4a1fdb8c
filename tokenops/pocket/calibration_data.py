"""Training questions as processor outputs, for calibrating on the pocket VLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenops.pocket.evaluate import encode
from tokenops.pocket.scenes import make_scene

if TYPE_CHECKING:
    from transformers import BatchFeature, LlavaProcessor


def calibration_data(
    processor: LlavaProcessor, items: int, *, batch: int = 4, seed: int = 0
) -> Iterator[BatchFeature]:
    """``items`` batches of questions about scenes of the training split, every kind in turn.

    >>> from tokenops.pocket.build import build_processor
    >>> next(calibration_data(build_processor(), 1))["pixel_values"].shape[0]
    4
    """
    for item in range(items):
        scenes = [make_scene("train", (seed, 2_000_000 + item * batch + i)) for i in range(batch)]
        asked = [scene.questions() for scene in scenes]
        yield encode(processor, scenes, [q[(item + i) % len(q)] for i, q in enumerate(asked)])
