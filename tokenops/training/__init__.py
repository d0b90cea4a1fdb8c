"""Train pipelines: curricula, losses, a module and a callback for the Hugging Face Trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenops.errors import TokenOpsError
from tokenops.training.annealed import Annealed
from tokenops.training.losses import soft_hard_bce, soft_hard_gap
from tokenops.training.schedules import Schedule, constant, cosine, exponential, linear, log_uniform

if TYPE_CHECKING:
    from tokenops.training.calibration import Calibration, calibrate
    from tokenops.training.collate import Collator
    from tokenops.training.curriculum import Curriculum
    from tokenops.training.sensitivity import layer_budgets, layer_gains
    from tokenops.training.trainable import Trainable

_LAZY = {
    "Calibration": "calibration",
    "calibrate": "calibration",
    "layer_budgets": "sensitivity",
    "layer_gains": "sensitivity",
    "Collator": "collate",
    "Curriculum": "curriculum",
    "Trainable": "trainable",
}

__all__ = [
    "Annealed",
    "Calibration",
    "Collator",
    "Curriculum",
    "Schedule",
    "Trainable",
    "calibrate",
    "constant",
    "cosine",
    "exponential",
    "layer_budgets",
    "layer_gains",
    "linear",
    "log_uniform",
    "soft_hard_bce",
    "soft_hard_gap",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        raise TokenOpsError(name, f"{error.name}: pip install 'tokenops[train]'", "not installed") from error
