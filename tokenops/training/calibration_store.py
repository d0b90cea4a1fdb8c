"""Reports of calibrated layers, and a folder that keeps them so that a run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.hub import require
from tokenops.routers import LowRankAttention


@dataclass(frozen=True)
class Fit:
    """How well low-rank scores agree with a layer's: means over held-out samples.

    Attributes:
        mse: squared error over the mean squared score of the layer.
        spearman: rank correlation over the visual tokens of a sample.
        overlap: share of the layer's Top-K that is in theirs.
    """

    mse: float
    spearman: float
    overlap: float


@dataclass(frozen=True)
class LayerReport:
    """One calibrated layer: agreement before and after, steps taken, and the layer's score mass."""

    layer: int
    before: Fit
    after: Fit
    steps: int
    mass: tuple[float, ...]


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the values of some tensors.

    >>> import torch
    >>> fingerprint(torch.ones(2)) == fingerprint(torch.ones(2)) != fingerprint(torch.zeros(2))
    True
    """
    found = hashlib.sha256()
    for t in tensors:
        found.update(t.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class Store:
    """Finished layers in a folder: factors as safetensors, reports and settings as JSON.

    Raises:
        TokenOpsError: the folder is of a run with other settings, factors, model or data.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        file = folder / "settings.json"
        if file.exists():
            found = json.loads(file.read_text())
            if found != dict(settings):
                other = sorted(n for n in {*found, *settings} if found.get(n) != settings.get(n))
                expected = f"the settings, factors, model and data of {folder}"
                raise TokenOpsError("calibrate", expected, f"other {', '.join(other)}")
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(settings))

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"layer-{number:03d}.safetensors", self.folder / f"layer-{number:03d}.json"

    def read(self, number: int, scorer: LowRankAttention) -> LayerReport | None:
        """The report of a finished layer, its factors loaded; None for another."""
        weights, report = self._paths(number)
        if not report.exists():
            return None
        scorer.load_state_dict(require("safetensors.torch", "calibrate").load_file(weights))
        found = json.loads(report.read_text())
        fits = {name: Fit(**found.pop(name)) for name in ("before", "after")}
        return LayerReport(**found | fits | {"mass": tuple(found["mass"])})

    def write(self, report: LayerReport, scorer: LowRankAttention) -> None:
        """Keep a finished layer; it counts as finished once its report is there."""
        weights, file = self._paths(report.layer)
        state = {name: value.contiguous() for name, value in scorer.state_dict().items()}
        unfinished = weights.with_suffix(".part")
        require("safetensors.torch", "calibrate").save_file(state, unfinished)
        unfinished.replace(weights)
        _write(file, json.dumps(asdict(report)))


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text(text)
    unfinished.replace(file)
