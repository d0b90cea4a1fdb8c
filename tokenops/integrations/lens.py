"""Looking at the queries and keys of an attention module, without leaving its fast attention.

The module gets a copied config that names a registered function, which shows queries and keys and delegates
to the attention the model would have used. Whoever wants to look says so once and for all, or arms the
:class:`Lens` around a call of the module.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokenops.integrations.wrap import LivesOnModel

LENS = "tokenops_lens"
_LENS = "_tokenops_lens"
Look = Callable[[Tensor, Tensor, float], None]


class Lens(LivesOnModel):
    """Shows queries (b h q e) and keys (b g k e) of an attention module to ``always``, or to who armed it.

    Arming is per thread.
    """

    def __init__(self, config: Any, always: Look | None = None) -> None:
        self.config, self.always = config, always
        self.local = threading.local()

    @contextmanager
    def armed(self, look: Look, *, only: bool = False) -> Iterator[None]:
        """Inside, calls show ``look(query, key, scale)``; with ``only``, they skip the attention itself."""
        self.local.look, self.local.only = look, only
        try:
            yield
        finally:
            self.local.look, self.local.only = None, False

    @property
    def look(self) -> tuple[Look | None, bool]:
        """Who looks, and whether only that is wanted."""
        if self.always is not None:
            return self.always, False
        return getattr(self.local, "look", None), getattr(self.local, "only", False)


def _show(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    lens = module.__dict__[_LENS]
    look, only = lens.look
    if look is not None:
        look(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    if only:
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3]), None
    name = lens.config._attn_implementation
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Any = eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    return function(module, query, key, value, attention_mask, **kwargs)


def put_lens(module: Any, always: Look | None = None) -> Lens:
    """Make an attention module show its queries and keys: to ``always`` in every call, or when armed.

    Registering the function with transformers is the one global this library sets.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(LENS, _show)
    AttentionMaskInterface.register(LENS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    lens = Lens(module.config, always)
    showing = copy.copy(module.config)
    showing._attn_implementation_internal = LENS
    module.config = showing
    module.__dict__[_LENS] = lens
    return lens


def lens_of(module: Any) -> Lens:
    """The lens of a module that has one."""
    return module.__dict__[_LENS]


def implementation_of(module: Any) -> str:
    """The attention that a module runs, behind a lens if it has one."""
    lens = module.__dict__.get(_LENS)
    return (module.config if lens is None else lens.config)._attn_implementation


def remove_lenses(model: Any) -> None:
    """Give every module with a lens its config back."""
    for module in model.modules():
        if (lens := module.__dict__.pop(_LENS, None)) is not None:
            module.config = lens.config


def attention_row(query: Tensor, key: Tensor, scale: float, row: Tensor, seen: Tensor) -> Tensor:
    """Attention of one query of each sample, heads averaged, float32.

    Shapes: query (b h q e), key (b g k e), row (b) the number of the query, seen (b k) -> (b k).
    """
    b, h, _, e = query.shape
    q = query.take_along_dim(row[:, None, None, None], dim=2).float() * scale
    q = q.view(b, key.shape[1], h // key.shape[1], e)
    with torch.autocast(query.device.type, enabled=False):
        logits = q @ key.float().transpose(-1, -2)
    return logits.masked_fill(~seen[:, None, None], -float("inf")).softmax(-1).mean((1, 2))
