"""Attention of one query row of one module, without maps and without leaving the fast attention.

The module gets a copied config that names a registered probe. The probe computes the wanted rows from the
queries and keys it is handed and delegates to the attention the model would have used.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Parts
from tokenops.integrations.wrap import eager

PROBE = "tokenops_probe"
_SINK = "_tokenops_sink"


def _probe(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sink = module.__dict__[_SINK]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    logits = (query[:, :, :1].float() * scale) @ key.float().transpose(-1, -2)
    sink.put(logits.softmax(-1)[:, :, 0].mean(1).detach())
    name = sink.config._attn_implementation
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Any = eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    return function(module, query, key, value, attention_mask, **kwargs)


class Sink:
    """Holds the rows of the last call of each thread, (crops, tokens) with heads averaged."""

    def __init__(self, config: Any, layer: Any = None) -> None:
        self.config, self.layer = config, layer
        self.local = threading.local()

    @property
    def rows(self) -> Tensor | None:
        """The rows, None before the first call and after they were taken."""
        return getattr(self.local, "rows", None)

    @eager
    def put(self, rows: Tensor | None) -> None:
        """Set the rows."""
        self.local.rows = rows

    def check(self, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise TokenOpsError if a call takes its features from another layer than the one probed."""
        given = arguments.get("vision_feature_layer")
        layer = getattr(config, "vision_feature_layer", None) if given is None else given
        if layer != self.layer:
            raise TokenOpsError("attach", f"vision_feature_layer {self.layer}, as when attached", layer)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, local=threading.local())


def _register() -> None:
    """The one global this library sets: our attention and mask functions, known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(PROBE, _probe)
    AttentionMaskInterface.register(PROBE, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def find_cls(parts: Parts) -> Any:
    """The attention of the vision block whose output the projector reads; the last of several.

    Raises:
        TokenOpsError: the vision tower has no CLS token.
    """
    kind = getattr(parts.vision_tower.config, "model_type", type(parts.vision_tower).__name__)
    path = parts.family.cls_attention.get(kind)
    if path is None:
        expected = "signal cls_attention: a vision tower with a CLS token"
        raise TokenOpsError("attach", expected, f"{parts.family.name} with {kind}")
    layer = getattr(parts.base.config, "vision_feature_layer", -1)
    layer = layer[-1] if isinstance(layer, (list, tuple)) else layer
    blocks = attrgetter(path)(parts.vision_tower)
    # hidden_states[0] is the embedding, so hidden_states[i] comes out of block i - 1
    number = layer - 1 if layer >= 0 else len(blocks) + layer
    if not 0 <= number < len(blocks):
        raise TokenOpsError("attach", f"vision_feature_layer of a block among {len(blocks)}", layer)
    return blocks[number].self_attn


def probe(module: Any, layer: Any) -> Sink:
    """Record the first query row of an attention module, that of vision layer ``layer``, from now on."""
    _register()
    sink = Sink(module.config, layer)
    probing = copy.copy(module.config)
    probing._attn_implementation_internal = PROBE
    module.config = probing
    module.__dict__[_SINK] = sink
    return sink


def unprobe(model: Any) -> None:
    """Give every probed module of ``model`` its config back."""
    for module in model.modules():
        if (sink := module.__dict__.pop(_SINK, None)) is not None:
            module.config = sink.config


def cls_rows(sink: Sink, crops: list[int]) -> list[Tensor]:
    """(crops, tokens) attention of the CLS token in each image, to itself first."""
    rows = sink.rows
    if rows is None or rows.shape[0] != sum(crops):
        raise TokenOpsError(
            "probe", f"CLS rows of {sum(crops)} crops", None if rows is None else tuple(rows.shape)
        )
    return list(torch.split(rows, crops))
