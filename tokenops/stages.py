"""Stages: what a pipeline does at a place of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tokenops.errors import TokenOpsError, TokenOpsWarning
from tokenops.selectors.topk import code_of
from tokenops.shapes import Bool, Float
from tokenops.signals import name_of, needs, supply
from tokenops.tokenmap import Assignment, Selection

SCOPES = ("image", "sample")
GATES = ("attention", "multiply")


class Stage(nn.Module):
    """What :class:`Prune` and :class:`Merge` share: a selector that is asked about an image or a sample."""

    def __init__(self, selector: Callable[..., Any], scope: str) -> None:
        super().__init__()
        who = type(self).__name__
        if not callable(selector):
            raise TokenOpsError(who, "a callable selector", type(selector).__name__)
        if scope not in SCOPES:
            raise TokenOpsError(who, f"scope among {', '.join(SCOPES)}", repr(scope))
        self.selector, self.scope = selector, scope
        parts = selector.modules() if isinstance(selector, nn.Module) else ()
        for trained in {getattr(part, "trained_scope", None) for part in parts} - {None, scope}:
            told = f"{who}: the scorer was trained with scope={trained!r}, used with scope={scope!r}"
            warnings.warn(told, TokenOpsWarning, stacklevel=3)

    def needs(self) -> dict[str, bool]:
        """Signals the stage takes: name -> required."""
        return {name: must for name, must in needs(self.selector).items() if name != "mask"}

    def select(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        signals: Mapping[str, Tensor | None],
    ) -> Selection:
        """Ask the selector, with the signals it takes; ``mask`` False marks padding, None is without.

        Raises:
            TokenOpsError: a required signal is missing, or the selector returns no Selection of (b n).
        """
        chosen = self.selector(x, **{**supply(self.selector, {**signals, "mask": mask}), "mask": mask})
        if not isinstance(chosen, Selection):
            raise TokenOpsError(name_of(self.selector), "to return a Selection", type(chosen).__name__)
        got, size = (chosen.index.shape[0], chosen.n), tuple(x.shape[:2])
        if got != size:
            raise TokenOpsError(name_of(self.selector), f"to return a Selection of {size}", got)
        return chosen

    def merge(
        self,
        x: Float[Tensor, "b n d"],
        chosen: Selection,
        mask: Bool[Tensor, "b n"] | None,
        signals: Mapping[str, Tensor | None],
    ) -> Assignment | None:
        """Where the tokens that are not selected go; None where they just leave.

        Shapes: x (b n d), mask (b n) -> Assignment of (b n).
        """
        return None


class Prune(Stage):
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

    >>> from tokenops.selectors import TopK
    >>> from tokenops.selectors.scorers import cls_attention
    >>> stage = Prune(TopK(cls_attention, keep=0.5))
    >>> stage.needs()
    {'cls_attention': True}
    >>> x, seen = torch.zeros(1, 4, 8), torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    >>> chosen = stage.select(x, None, {"cls_attention": seen})
    >>> chosen.index, stage.merge(x, chosen, None, {}) is None
    (tensor([[1, 3]]), True)
    """

    def __init__(
        self, selector: Callable[..., Any], *, scope: str = "image", gate: str = "attention"
    ) -> None:
        super().__init__(selector, scope)
        if gate not in GATES:
            raise TokenOpsError("Prune", f"gate among {', '.join(GATES)}", repr(gate))
        self.gate = gate

    def __repr__(self) -> str:
        return f"Prune({self.selector!r}, scope={self.scope!r}, gate={self.gate!r})"


class Merge(Stage):
    """Keep what a selector keeps, with the rest merged into it as a merger says.

    A merged token stands at the position of its group's anchor, with the features of the whole group; all
    other tokens leave the sequence. Positions are those of the anchors. Gradients reach every merged token's
    features; the choice itself has none, so there is no soft mask and nothing of the selector is trained.

    Args:
        selector: any Selector, ``(x, *, mask, <signals>) -> Selection``.
        merger: any Merger, ``(x, selection, *, mask, <signals>) -> Assignment``.
        scope: ``"image"`` merges inside every image (or video); ``"sample"`` pools all images of a sample.

    Warns ``TokenOpsWarning`` once, here, when the scorer was trained with another scope.

    Raises:
        TokenOpsError: unknown scope, or something that cannot be called. In training: a selector with a
            relaxation.

    >>> from tokenops.selectors import TopK
    >>> from tokenops.selectors.mergers import nearest_kept
    >>> from tokenops.selectors.scorers import feature_norm
    >>> stage = Merge(TopK(feature_norm, keep=2), nearest_kept)
    >>> stage.needs()
    {}
    >>> x = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]])
    >>> stage.merge(x, stage.select(x, None, {}), None, {}).group
    tensor([[0, 0, 1]])
    """

    def __init__(
        self, selector: Callable[..., Any], merger: Callable[..., Any], *, scope: str = "image"
    ) -> None:
        super().__init__(selector, scope)
        if not callable(merger):
            raise TokenOpsError("Merge", "a callable merger", type(merger).__name__)
        self.merger = merger

    def needs(self) -> dict[str, bool]:
        """Signals that the selector or the merger takes: name -> required."""
        own = super().needs()
        both = {name: must or own.get(name, False) for name, must in needs(self.merger).items()}
        return {name: must for name, must in (own | both).items() if name != "mask"}

    def merge(
        self,
        x: Float[Tensor, "b n d"],
        chosen: Selection,
        mask: Bool[Tensor, "b n"] | None,
        signals: Mapping[str, Tensor | None],
    ) -> Assignment:
        """Ask the merger, with the signals it takes; ``mask`` False marks padding, None is without.

        Raises:
            TokenOpsError: a soft mask, a required signal is missing, or no Assignment of (b n) comes back.
        """
        if chosen.gate is not None:
            raise TokenOpsError("Merge", "a selector without a relaxation", "a soft mask")
        merged = self.merger(x, chosen, **supply(self.merger, {**signals, "mask": mask}))
        if not isinstance(merged, Assignment):
            raise TokenOpsError(name_of(self.merger), "to return an Assignment", type(merged).__name__)
        got, size = tuple(merged.group.shape), tuple(x.shape[:2])
        if got != size:
            raise TokenOpsError(name_of(self.merger), f"to return an Assignment of {size}", got)
        return merged

    def __repr__(self) -> str:
        return f"Merge({self.selector!r}, {code_of(self.merger)}, scope={self.scope!r})"
