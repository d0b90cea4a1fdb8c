"""Inputs of any size: random images and random words around them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from tokenops.analysis.cost.architecture import architecture
from tokenops.analysis.cost.images import images_of
from tokenops.errors import TokenOpsError, check_ints
from tokenops.integrations.families import Parts, find_parts

Size = tuple[int, int]
"""Height and width in pixels."""


def prompt(model: Any, size: Size, *, text: int, batch: int = 1, processor: Any = None) -> dict[str, Any]:
    """A batch of prompts for ``generate``: one random image each, half of the words before it, half behind.

    How many placeholders an image needs is asked of the model, which computes its features once.

    Args:
        model: of a known family.
        size: of the images.
        text: words of each prompt, those that mark an image included.
        batch: prompts, all of one length.
        processor: an image processor; None makes pixels directly, as the family takes them.

    Raises:
        TokenOpsError: bad numbers, too few words, or an image the model does not take.
    """
    height, width = size
    check_ints("prompt", text=(text, 2), batch=(batch, 1), h=(height, 1), w=(width, 1))
    parts = find_parts(model)
    g = torch.Generator().manual_seed(0)
    made = _pixels(parts, size, g) if processor is None else _processed(processor, size, g)
    weight = parts.language_model.get_input_embeddings().weight
    pixels = {
        name: t.to(weight.device, weight.dtype if t.is_floating_point() else None) for name, t in made.items()
    }
    ids = _ids(parts, _placeholders(parts, pixels), text, g).to(weight.device)
    out = {name: torch.cat([t] * batch) for name, t in pixels.items()}
    out["input_ids"] = ids.expand(batch, -1).contiguous()
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    if "mm_token_type_ids" in inspect.signature(type(parts.model).forward).parameters:
        out["mm_token_type_ids"] = (out["input_ids"] == _image_token(parts)).int()
    return out


def size_for(model: Any, tokens: int) -> Size:
    """A square image that makes about so many visual tokens, the nearest there is.

    Raises:
        TokenOpsError: a family whose images all make one number of tokens, when that is another.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise TokenOpsError("tokens", "an int >= 1", repr(tokens))
    parts = find_parts(model)
    vision = parts.base.config.vision_config
    if parts.family.name == "qwen2_5_vl":
        cell = vision.patch_size * vision.spatial_merge_size
        side = max(1, round(math.sqrt(tokens)))
        return side * cell, max(1, round(tokens / side)) * cell
    sizes = [(vision.image_size, vision.image_size)]
    if parts.family.name == "llava_next":
        sizes += [(h, w) for h, w in parts.base.config.image_grid_pinpoints]
    arch = architecture(parts.model)
    sized = {size: size if parts.family.name == "llava_next" else arch.per_view for size in sizes}
    counts = {size: images_of(arch, [entry])[0].tokens for size, entry in sized.items()}
    best = min(sizes, key=lambda size: abs(counts[size] - tokens))
    if counts[best] != tokens:
        what = ", ".join(map(str, sorted(set(counts.values()))))
        raise TokenOpsError("tokens", f"a number that images of this model make ({what})", tokens)
    return best


def default_size(model: Any) -> Size:
    """What is usual: the tower's own size; for LLaVA-NeXT four crops; for Qwen2.5-VL 36 x 36 tokens."""
    parts = find_parts(model)
    vision = parts.base.config.vision_config
    if parts.family.name == "qwen2_5_vl":
        return size_for(model, 1296)
    times = 2 if parts.family.name == "llava_next" else 1
    return times * vision.image_size, times * vision.image_size


def _processed(processor: Any, size: Size, g: torch.Generator) -> dict[str, Tensor]:
    from PIL import Image

    image = Image.fromarray(torch.randint(0, 256, (*size, 3), generator=g, dtype=torch.uint8).numpy())
    made = processor(images=[image], return_tensors="pt")
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def _pixels(parts: Parts, size: Size, g: torch.Generator) -> dict[str, Tensor]:
    """Pixels of one image, as the processors of the three families would shape them."""
    vision = parts.base.config.vision_config
    if parts.family.name == "qwen2_5_vl":
        merge, patch = vision.spatial_merge_size, vision.patch_size
        h, w = (max(1, round(n / patch / merge)) * merge for n in size)
        flat = vision.in_channels * vision.temporal_patch_size * patch**2
        pixels = torch.randn(h * w, flat, generator=g)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, h, w]])}
    view = (vision.num_channels, vision.image_size, vision.image_size)
    if parts.family.name == "llava":
        return {"pixel_values": torch.randn(1, *view, generator=g)}
    if parts.family.name != "llava_next":
        raise TokenOpsError("prompt", "a processor for this family", parts.family.name)
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    views = image_size_to_num_patches(list(size), parts.base.config.image_grid_pinpoints, vision.image_size)
    pixels = torch.randn(1, views, *view, generator=g)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([list(size)])}


@torch.no_grad()
def _placeholders(parts: Parts, pixels: dict[str, Tensor]) -> int:
    """Features of the one image, line breaks among them."""
    (method,) = (name for name, kind in parts.family.features.items() if kind == "image")
    training = parts.model.training
    parts.model.eval()
    try:
        (features,) = list(getattr(parts.base, method)(**pixels).pooler_output)
    finally:
        parts.model.train(training)
    return features.shape[0]


def _image_token(parts: Parts) -> int:
    return getattr(parts.base.config, parts.family.tokens["image"])


def _ids(parts: Parts, placeholders: int, text: int, g: torch.Generator) -> Tensor:
    """(1 l) half of the words, what marks an image where the model knows such, the image, the other half."""
    config = parts.base.config
    marks = [getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end")]
    start, end = ([] if mark is None else [mark] for mark in marks)
    words = text - len(start) - len(end)
    if words < 2:
        raise TokenOpsError("prompt", f"text >= {2 + len(start) + len(end)} (it marks the image too)", text)
    special = {getattr(config, name) for name in parts.family.tokens.values()} | {*start, *end}
    special |= {getattr(config.get_text_config(), f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    table = parts.language_model.get_input_embeddings().num_embeddings
    usual = torch.tensor([i for i in range(table) if i not in special])
    chosen = usual[torch.randint(len(usual), (words,), generator=g)].tolist()
    half = words // 2
    image = [_image_token(parts)] * placeholders
    return torch.tensor([[*chosen[:half], *start, *image, *end, *chosen[half:]]])
