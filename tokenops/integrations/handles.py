"""What the handle of an attached pipeline is, whatever kind of model it is attached to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from torch import nn

from tokenops.integrations.trace import Trace
from tokenops.integrations.wrap import check_wrapped
from tokenops.pipeline import Pipeline


class AttachedHandle(ABC):
    """A pipeline attached to a model. A context manager; :meth:`remove` ends it."""

    def __init__(self, model: Any, state: Any) -> None:
        self._model, self._state = model, state

    @property
    def model(self) -> nn.Module:
        """The model it is attached to."""
        return self._model

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline at work."""
        return self._state.pipeline

    @property
    @abstractmethod
    def trace(self) -> tuple[Trace, ...]:
        """What was kept in the last call."""

    @property
    @abstractmethod
    def tokens_per_layer(self) -> tuple[float, ...]:
        """Visual tokens that ran in each layer in the last call, mean over the images."""

    @property
    @abstractmethod
    def attached(self) -> bool:
        """Whether the model still runs this pipeline."""

    @abstractmethod
    def _places(self) -> list[tuple[Any, str]]:
        """What is wrapped: module, method."""

    @abstractmethod
    def _restore(self) -> None:
        """Unwrap all of it."""

    def remove(self) -> None:
        """Restore the model. A second call does nothing.

        Raises:
            TokenOpsError: something else wrapped the model after us; nothing is removed then.
        """
        if not self.attached:
            return
        for module, method in self._places():
            check_wrapped(module, method)
        self._restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        how = "attached" if self.attached else "removed"
        return f"Handle({type(self.model).__name__}, {self.pipeline!r}, {how})"
