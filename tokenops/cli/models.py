"""Models for commands: a folder or a hub id as from_pretrained takes it, or the one that ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenops.cli.arguments import POCKET
from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    import torch


def load_model(source: str, dtype: torch.dtype, where: torch.device) -> tuple[Any, Any]:
    """A model in evaluation mode on its device, and its processor, which pads on the left.

    Raises:
        TokenOpsError: nothing there, no model of images and text, or no processor beside it.
    """
    from transformers import AutoProcessor
    from transformers.utils import logging

    from tokenops import pocket
    from tokenops.analysis.measure.subjects import trained_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder = pocket.weights_dir() if source == POCKET else source
    model, _ = trained_model(folder, dtype=dtype, device=where)
    try:
        processor: Any = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise TokenOpsError("processor", f"{source} with the files of its processor", what) from error
    if getattr(processor, "tokenizer", None) is None:
        raise TokenOpsError(
            "processor", f"{source} with a processor of images and text", type(processor).__name__
        )
    processor.tokenizer.padding_side = "left"
    return model, processor
