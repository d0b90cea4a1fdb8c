"""Stages: what a pipeline does at a place of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tokenops.errors import TokenOpsError, TokenOpsWarning
from tokenops.shapes import Bool, Float
from tokenops.signals import name_of, needs, supply
from tokenops.tokenmap import Selection

SCOPES = ("image", "sample")
GATES = ("attention", "multiply")


class Prune(nn.Module):
    """Keep what a selector keeps; the rest leaves the sequence.

    Args:
        selector: any Selector, ``(x, *, mask, <signals>) -> Selection``.
        scope: ``"image"`` selects in every image (or video) on its own; ``"sample"`` pools all images of a
            sample into one budget, as VisionSelector's released code does.
        gate: how a soft mask m acts in training: ``"attention"`` adds log m to the attention logits of the
            key in every language-model layer (exact at 0 and 1); ``"multiply"`` scales the features as in
            the VisionSelector paper (§3.2), which a pre-norm language model partly undoes.

    Warns ``TokenOpsWarning`` once, here, when the scorer was trained with another scope.

    Raises:
        TokenOpsError: unknown scope or gate, or something that cannot be called.
    """

    def __init__(
        self, selector: Callable[..., Any], *, scope: str = "image", gate: str = "attention"
    ) -> None:
        super().__init__()
        if not callable(selector):
            raise TokenOpsError("Prune", "a callable selector", type(selector).__name__)
        if scope not in SCOPES:
            raise TokenOpsError("Prune", f"scope among {', '.join(SCOPES)}", repr(scope))
        if gate not in GATES:
            raise TokenOpsError("Prune", f"gate among {', '.join(GATES)}", repr(gate))
        self.selector, self.scope, self.gate = selector, scope, gate
        parts = selector.modules() if isinstance(selector, nn.Module) else ()
        for trained in {getattr(part, "trained_scope", None) for part in parts} - {None, scope}:
            told = f"Prune: the scorer was trained with scope={trained!r}, used with scope={scope!r}"
            warnings.warn(told, TokenOpsWarning, stacklevel=2)

    def needs(self) -> dict[str, bool]:
        """Signals the selector takes: name -> required."""
        return {name: must for name, must in needs(self.selector).items() if name != "mask"}

    def select(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], signals: Mapping[str, Tensor | None]
    ) -> Selection:
        """Ask the selector, with the signals it takes; ``mask`` False marks padding.

        Raises:
            TokenOpsError: a required signal is missing, or the selector returns no Selection of (b n).
        """
        chosen = self.selector(x, **{**supply(self.selector, {**signals, "mask": mask}), "mask": mask})
        if not isinstance(chosen, Selection):
            raise TokenOpsError(name_of(self.selector), "to return a Selection", type(chosen).__name__)
        if (chosen.index.shape[0], chosen.n) != tuple(mask.shape):
            got = (chosen.index.shape[0], chosen.n)
            raise TokenOpsError(name_of(self.selector), f"to return a Selection of {tuple(mask.shape)}", got)
        return chosen

    def __repr__(self) -> str:
        return f"Prune({self.selector!r}, scope={self.scope!r}, gate={self.gate!r})"
