"""Model families as data: where the parts are and what runs along the token axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.arrange import Arrange, by_crop, by_window
from tokenops.integrations.layouts import Layout, anyres, grid_thw, square

_TOKEN_AXES = {"position_ids": -1, "token_type_ids": 1, "mm_token_type_ids": 1, "visual_pos_masks": 1}


@dataclass(frozen=True)
class Tower:
    """Where the attention of a vision tower can be read.

    Attributes:
        blocks: dotted path from the vision tower to its list of blocks.
        attention: attribute of a block with its attention.
        cls: whether it has a CLS token, the first of its tokens.
        full: attribute of its config with the numbers of the blocks that see a whole image, the last of which
            is read; None where all do, to read the one whose output the projector takes.
        arrange: puts what was read in the order of the visual tokens.
    """

    blocks: str = "encoder.layers"
    attention: str = "self_attn"
    cls: bool = False
    full: str | None = None
    arrange: Arrange = by_crop


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: ``config.model_type``.
        layout: where visual tokens lie, see :mod:`tokenops.integrations.layouts`.
        features: method of the base model that returns visual features -> kind of unit.
        tokens: kind of unit -> attribute of the config with its placeholder id.
        base: dotted path from the model to the part that merges text and images.
        language_model, vision_tower: dotted paths from the base.
        layers: dotted path from the language model to its decoder layers.
        towers: where the attention of its vision towers can be read, by ``model_type`` of the vision config;
            components that need it are refused on other towers.
        token_axes: keyword arguments of the language model that run along tokens -> that axis.

    >>> from dataclasses import replace
    >>> mine = replace(FAMILIES["llava"], name="my_llava", vision_tower="vision_model")
    >>> mine.features, mine.layers
    ({'get_image_features': 'image'}, 'layers')
    """

    name: str
    layout: Layout
    features: Mapping[str, str]
    tokens: Mapping[str, str]
    base: str = "model"
    language_model: str = "language_model"
    vision_tower: str = "vision_tower"
    layers: str = "layers"
    towers: Mapping[str, Tower] = field(default_factory=dict)
    token_axes: Mapping[str, int] = field(default_factory=lambda: dict(_TOKEN_AXES))


_CLIP = {"clip_vision_model": Tower(cls=True)}
_SIGLIP = {"siglip_vision_model": Tower()}
_QWEN = Tower("blocks", "attn", full="fullatt_block_indexes", arrange=by_window)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llava",
            layout=square,
            features={"get_image_features": "image"},
            tokens={"image": "image_token_id"},
            towers=_CLIP | _SIGLIP,
        ),
        Family(
            "llava_next",
            layout=anyres,
            features={"get_image_features": "image"},
            tokens={"image": "image_token_id"},
            towers=_CLIP,
        ),
        Family(
            "qwen2_5_vl",
            layout=grid_thw,
            features={"get_image_features": "image", "get_video_features": "video"},
            tokens={"image": "image_token_id", "video": "video_token_id"},
            vision_tower="visual",
            towers={"qwen2_5_vl_vision": _QWEN, "qwen2_5_vl": _QWEN},
        ),
    )
}


@dataclass(frozen=True)
class Parts:
    """The modules of one model that a family's paths lead to."""

    family: Family
    model: nn.Module
    base: Any
    language_model: Any
    vision_tower: Any

    @property
    def layers(self) -> Any:
        """The decoder layers of the language model."""
        return attrgetter(self.family.layers)(self.language_model)


def unwrap(model: Any) -> Any:
    """The model inside ``torch.compile``, PEFT and data-parallel wrappers."""
    if not isinstance(model, nn.Module):
        raise TokenOpsError("attach", "a torch model", type(model).__name__)
    if isinstance(model, nn.DataParallel):
        raise TokenOpsError("attach", "DistributedDataParallel or a single device", "nn.DataParallel")
    if hasattr(model, "_orig_mod"):
        return unwrap(model._orig_mod)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if hasattr(model, "get_base_model"):
        return unwrap(model.get_base_model())
    return model


def find_parts(model: Any, family: Family | None = None) -> Parts:
    """Resolve the paths of ``family`` (by default the one of ``model.config.model_type``) in ``model``.

    Raises:
        TokenOpsError: unknown family, or a path that leads nowhere.
    """
    model = unwrap(model)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(kind) if family is None else family
    if not isinstance(family, Family):
        fields = "name, layout, features, tokens, base, language_model, vision_tower, layers"
        known = ", ".join(sorted(FAMILIES))
        expected = f"a known family ({known}) or family=Family({fields})"
        raise TokenOpsError("attach", expected, repr(family or kind))
    try:
        base = attrgetter(family.base)(model) if _has(model, family.base) else model
        language_model = attrgetter(family.language_model)(base)
        tower = attrgetter(family.vision_tower)(base)
        attrgetter(family.layers)(language_model)
        for method in family.features:
            attrgetter(method)(base)
        for token in family.tokens.values():
            attrgetter(token)(base.config)
    except AttributeError as error:
        raise TokenOpsError("attach", f"the parts of family {family.name}", error) from error
    return Parts(family, model, base, language_model, tower)


def _has(model: Any, path: str) -> bool:
    try:
        return attrgetter(path)(model) is not None
    except AttributeError:
        return False
