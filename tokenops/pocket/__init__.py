"""A pocket VLM that ships with the package, and the scenes it was trained on.

A LLaVA of 1.3 million parameters that answers questions about coloured handwritten digits; for demos, tests
and documentation without downloads. Nothing of transformers is imported before :func:`load` is called.

>>> from tokenops import pocket
>>> scene = pocket.scenes(1, "heldout", seed=1)[0]
>>> [question.text for question in scene.questions()][-1]
'how many coloured digits ?'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenops.pocket.evaluate import Report, evaluate, evaluate_kept
from tokenops.pocket.scenes import Digit, Question, Scene, make_scene, scenes, stream
from tokenops.pocket.selector import visionselector

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = [
    "Digit",
    "Question",
    "Report",
    "Scene",
    "evaluate",
    "evaluate_kept",
    "load",
    "make_scene",
    "scenes",
    "stream",
    "visionselector",
    "weights_dir",
]


def weights_dir() -> Path:
    """The folder with the model's and the processor's files, as ``from_pretrained`` reads them.

    >>> (weights_dir() / "config.json").is_file()
    True
    """
    return Path(__file__).parent / "weights"


def load(dtype: torch.dtype | None = None) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The trained model, in evaluation mode, and its processor; float32 unless told otherwise.

    >>> model, processor = load()
    >>> scene = scenes(1, "heldout", seed=1)[0]
    >>> inputs = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")
    >>> tuple(model(**inputs).logits.shape[:2]) == tuple(inputs["input_ids"].shape)
    True
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = weights_dir()
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32 if dtype is None else dtype
    )
    return model.eval(), AutoProcessor.from_pretrained(folder)
