"""What a component needs beyond the features, read from its keyword-only arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from tokenops.errors import TokenOpsError

SIGNALS = {
    "mask": "(b n) bool, False for padding",
    "grid": "(b n 3) long, (frame or crop, row, column) of every token",
    "segments": "(b n) long, the image each token belongs to",
    "cls_attention": "(b n) float, attention of the CLS token to every patch, mean over heads",
    "received_attention": "(b n) float, attention every patch receives in a vision tower without CLS token",
    "vision_keys": "(b n e) float, attention keys of every patch in the vision tower, mean over heads",
    "visual": "(b n) bool, True at visual tokens among all tokens of a language-model layer",
    "rope": "(cos, sin), each (b n e), of a language-model layer",
    "last_attention": "(b n) float, attention of the last token in the layer before, mean over heads",
    "next_attention": "(b n) float, attention of the last token in this layer, mean over heads",
}


def needs(component: Callable[..., Any]) -> dict[str, bool]:
    """Signals a component takes: name -> required. Wrappers tell theirs by a ``needs()`` method.

    >>> def scorer(x, *, cls_attention, mask=None): ...
    >>> needs(scorer)
    {'cls_attention': True, 'mask': False}
    """
    own = getattr(component, "needs", None)
    if callable(own):
        return cast(dict[str, bool], own())
    call = component.forward if isinstance(component, nn.Module) else component
    parameters = inspect.signature(call).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


def supply(component: Callable[..., Any], signals: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The arguments of ``component`` among ``signals``.

    Raises:
        TokenOpsError: a required signal is missing.
    """
    given = {}
    for name, required in needs(component).items():
        value = signals.get(name)
        if value is not None:
            given[name] = value
        elif required:
            what = SIGNALS.get(name, "a signal")
            raise TokenOpsError(name_of(component), f"signal {name}: {what}", "none")
    return given


def name_of(component: Any) -> str:
    """Class name of a module, name of a function."""
    return getattr(component, "__name__", None) or type(component).__name__
