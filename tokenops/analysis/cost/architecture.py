"""The sizes of a model that its cost depends on, read from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenops.errors import TokenOpsError


@dataclass(frozen=True)
class Tower:
    """A vision transformer.

    Attributes:
        layers, width, ffn, heads: of its blocks.
        matrices: of a feed-forward network: 3 where it is gated (SwiGLU), 2 where it is plain.
        patch: numbers of one patch of pixels.
        side: patches along a view's edge; 0 where images have any size.
        cls: tokens of a view beside its patches.
        merge: patches along the edge of one visual token.
        window: patches along the edge of an attention window; 0 without windows.
        full: blocks that look at whole images, None for all.
        pooled: whether a pooling head, whose output nobody reads, runs too.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    patch: int
    matrices: int = 2
    side: int = 0
    cls: int = 0
    merge: int = 1
    window: int = 0
    full: frozenset[int] | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Projector:
    """Two matrices between the tower and the language model; ``rows`` inputs are joined to one."""

    inputs: int
    hidden: int
    outputs: int
    bias: bool = True


@dataclass(frozen=True)
class Decoder:
    """The language model: grouped-query attention, a gated feed-forward network, a head."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model: its parts, and how many tokens of a view reach the projector (0: no views)."""

    family: str
    tower: Tower
    projector: Projector
    decoder: Decoder
    per_view: int
    config: Any


# decoders built as Llama is -> biases of (queries, keys and values; the output; the feed-forward network)
_BIASES: Mapping[str, Callable[[Any], tuple[bool, bool, bool]]] = {
    "llama": lambda c: (c.attention_bias, c.attention_bias, c.mlp_bias),
    "mistral": lambda c: (False, False, False),
    "qwen2": lambda c: (True, False, False),
    "qwen2_5_vl_text": lambda c: (True, False, False),
}


def _decoder(config: Any) -> Decoder:
    kind = config.model_type
    if kind not in _BIASES:
        raise TokenOpsError("cost", f"a language model among {', '.join(_BIASES)}", repr(kind))
    heads = config.num_attention_heads
    biases = _BIASES[kind](config)
    return Decoder(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        heads,
        config.num_key_value_heads or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
        config.vocab_size,
        *biases,
    )


def _views(family: str, config: Any) -> Architecture:
    """LLaVA: square views of one size, a two-layer projector."""
    vision, text = config.vision_config, config.text_config
    kinds = {"clip_vision_model": 1, "siglip_vision_model": 0}
    if vision.model_type not in kinds:
        raise TokenOpsError("cost", f"a vision tower among {', '.join(kinds)}", repr(vision.model_type))
    cls, side = kinds[vision.model_type], vision.image_size // vision.patch_size
    tower = Tower(
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.intermediate_size,
        vision.num_attention_heads,
        vision.num_channels * vision.patch_size**2,
        side=side,
        cls=cls,
        pooled=not cls and getattr(vision, "vision_use_head", True),
    )
    read = config.vision_feature_layer
    inputs = vision.hidden_size * (1 if isinstance(read, int) else len(read))
    projector = Projector(inputs, text.hidden_size, text.hidden_size, config.multimodal_projector_bias)
    first_left_out = config.vision_feature_select_strategy == "default"
    return Architecture(family, tower, projector, _decoder(text), side**2 + cls - first_left_out, config)


def _windows(family: str, config: Any) -> Architecture:
    """Qwen2.5-VL: images of any size, windows in most blocks, patches merged by the projector."""
    vision, text = config.vision_config, config.text_config
    merge = vision.spatial_merge_size
    tower = Tower(
        vision.depth,
        vision.hidden_size,
        vision.intermediate_size,
        vision.num_heads,
        vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        matrices=3,
        merge=merge,
        window=vision.window_size // merge // vision.patch_size * merge,
        full=frozenset(vision.fullatt_block_indexes),
    )
    inputs = vision.hidden_size * merge**2
    projector = Projector(inputs, inputs, vision.out_hidden_size)
    return Architecture(family, tower, projector, _decoder(text), 0, config)


_FAMILIES = {"llava": _views, "llava_next": _views, "qwen2_5_vl": _windows}


def architecture(model_or_config: Any) -> Architecture:
    """The sizes of a transformers model of a known family, or of its config.

    Raises:
        TokenOpsError: another family, vision tower or language model.
    """
    config = getattr(inner(model_or_config), "config", model_or_config)
    family = getattr(config, "model_type", type(model_or_config).__name__)
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise TokenOpsError("cost", f"a model or config of a known family ({known})", repr(family))
    return _FAMILIES[family](family, config)


def inner(model: Any) -> Any:
    """The model inside ``torch.compile``, PEFT and data-parallel wrappers; a config as it is."""
    from torch import nn

    from tokenops.integrations.families import unwrap

    return unwrap(model) if isinstance(model, nn.Module) else model
