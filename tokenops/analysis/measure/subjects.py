"""Models to measure: loaded, or built with random weights where sizes are all that matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenops.analysis.measure.architectures import config_of, shorten
from tokenops.errors import TokenOpsError


def random_model(
    source: str | Path, *, layers: int | None = None, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A model of this config with random weights, made on its device, in evaluation mode.

    Args:
        source: a built-in name, a ``config.json`` or a folder with one, see :func:`config_of`.
        layers: of the language model; None for all of them.
        dtype: of the weights; nothing is made in another.
        device: where.

    Raises:
        TokenOpsError: a bad source or number of layers, or no image-text model.
    """
    import transformers

    built: Any = transformers.AutoModelForImageTextToText
    config = config_of(source, layers)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), device:
            torch.manual_seed(0)
            return built.from_config(config, dtype=dtype).eval()
    except (TypeError, ValueError, AttributeError) as error:
        raise TokenOpsError("random weights", f"{source} to build an image-text model", error) from error


def trained_model(
    source: str | Path, *, layers: int | None = None, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, Any]:
    """A model as ``from_pretrained`` finds it, and its image processor; None if there is none.

    Raises:
        TokenOpsError: not a model of images and text, nothing there, or a bad number of layers.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

    with _told(source):
        config = AutoConfig.from_pretrained(source)
        config = config if layers is None else shorten(config, layers)
        model = AutoModelForImageTextToText.from_pretrained(source, config=config, dtype=dtype)
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        processor = None
    loaded: Any = model
    return loaded.to(device).eval(), processor


@contextmanager
def _told(source: str | Path) -> Iterator[None]:
    """Errors of transformers in one line."""
    try:
        yield
    except TokenOpsError:
        raise
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise TokenOpsError("model", f"{source} as from_pretrained reads image-text models", what) from error
