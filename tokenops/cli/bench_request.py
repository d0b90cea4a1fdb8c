"""What ``tokenops bench`` was asked for: a model, inputs, and the methods to compare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenops.cli.arguments import check_dtype, keep_of, place
from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    from tokenops.pipeline import Pipeline

WHO = "tokenops bench"


@dataclass(frozen=True)
class Asked:
    """The model and the inputs that were asked for."""

    model: str | None
    random_weights: str | None
    dtype: str | None
    device: str | None
    layers: int | None
    tokens: int | None
    image_size: str | None
    text: int
    batch: int

    def __post_init__(self) -> None:
        for one, other in (("model", "random_weights"), ("tokens", "image_size")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                names = [f"--{name}".replace("_", "-").replace("--model", "MODEL") for name in (one, other)]
                raise TokenOpsError(WHO, f"{names[0]} or {names[1]}", "both")
        if self.image_size is not None:
            parse_size(self.image_size)

    def subject(self) -> tuple[Any, Any]:
        """The model and, if it has one, its image processor."""
        from tokenops.analysis.measure.subjects import random_model, trained_model

        where = place(WHO, self.device)
        dtype = check_dtype(WHO, self.dtype, where)
        how: dict[str, Any] = {"layers": self.layers, "dtype": dtype, "device": where}
        if self.random_weights is not None:
            return random_model(self.random_weights, **how), None
        from tokenops import pocket

        return trained_model(pocket.weights_dir() if self.model is None else self.model, **how)

    def inputs(self, model: Any, processor: Any) -> dict[str, Any]:
        """Random prompts of the size that was asked for."""
        from tokenops.analysis.measure.prompts import default_size, prompt, size_for
        from tokenops.integrations.families import find_parts

        if self.image_size is not None:
            size = parse_size(self.image_size)
            if find_parts(model).family.name == "llava" and size != (own := default_size(model)):
                expected = f"--image-size {own[1]}x{own[0]}, the only one of this model, or none"
                raise TokenOpsError(WHO, expected, self.image_size)
        else:
            size = default_size(model) if self.tokens is None else size_for(model, self.tokens)
        return prompt(model, size, text=self.text, batch=self.batch, processor=processor)


@dataclass(frozen=True)
class Contenders:
    """Methods by name, each with every budget, and pipelines from disk."""

    methods: tuple[str, ...]
    keeps: tuple[str, ...]
    folders: tuple[Path, ...]

    def pipelines(self, model: Any) -> dict[str, Pipeline]:
        """Name -> pipeline, on the model's device.

        Raises:
            TokenOpsError: an unknown method, a bad budget, a folder without a pipeline, one named twice.
        """
        from tokenops.analysis.measure.methods import method
        from tokenops.integrations.checkpoints import load

        keeps = [keep_of(WHO, text) for text in self.keeps or ("0.2",)]
        device = next(model.parameters()).device
        made: list[tuple[str, Pipeline]] = []
        for name in self.methods or (() if self.folders else ("visionselector",)):
            made += [(f"{name} {keep:g}", method(model, name, keep)) for keep in keeps]
        made += [(folder.name or str(folder), load(folder).to(device)) for folder in self.folders]
        names = [name for name, _ in made]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TokenOpsError(WHO, "every contender once", ", ".join(twice))
        return dict(made)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``"640x480"`` (width first, as is usual) or ``"336"``.

    >>> parse_size("640x480"), parse_size("336")
    ((480, 640), (336, 336))
    """
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not width or not height:
        raise TokenOpsError(
            WHO, "--image-size as WIDTHxHEIGHT in pixels, or one number for a square", repr(text)
        )
    return height, width
