"""Full-size architectures from the real config classes, with random weights, and prompts for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenops.analysis.measure.architectures import ARCHITECTURES

IMAGE, VISION_START, VISION_END = 90, 92, 93  # ids of random words start above them
TEXT = 64
TINY_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
}
TINY_LLAVA: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
    },
    "text_config": TINY_TEXT,
}
TINY_QWEN: dict[str, Any] = {
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
    },
    "text_config": TINY_TEXT
    | {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 3]},
    },
}
# by name of the architecture, what --small changes: everything keeps its place, at sizes that a test can run
TINY: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": TINY_LLAVA,
    "llava-next-7b": TINY_LLAVA | {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
    "qwen2.5-vl-7b": TINY_QWEN,
}
LLAVA_IDS = {"image_token_index": IMAGE}
IDS: dict[str, dict[str, int]] = {
    "llava-1.5-7b": LLAVA_IDS,
    "llava-next-7b": LLAVA_IDS,
    "qwen2.5-vl-7b": {
        "image_token_id": IMAGE,
        "video_token_id": IMAGE + 1,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    },
}


@dataclass(frozen=True)
class Shape:
    """An architecture and an image for it: its size in pixels, for Qwen in rows and columns of tokens."""

    name: str
    architecture: str
    tokens: int
    size: tuple[int, int]

    def config(self, small: bool) -> Any:
        """Of the whole model, with ids below those of the random words."""
        from transformers import AutoConfig

        changes = IDS[self.architecture] | (TINY[self.architecture] if small else {})
        return AutoConfig.for_model(**_merged(ARCHITECTURES[self.architecture], changes))

    def model(self, config: Any) -> Any:
        """The model of a config."""
        import transformers

        names = {"llava": "Llava", "llava_next": "LlavaNext", "qwen2_5_vl": "Qwen2_5_VL"}
        return getattr(transformers, names[config.model_type] + "ForConditionalGeneration")(config)

    def build(self, small: bool, device: torch.device, dtype: torch.dtype) -> Any:
        """The model with random weights, made on the device."""
        config = self.config(small)
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                model = self.model(config)
        finally:
            torch.set_default_dtype(before)
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    def visual(self, small: bool) -> int:
        """Visual tokens, line breaks not counted."""
        return (
            self.tokens
            if not small
            else {"llava": 16, "llava_next": 80}.get(self.config(True).model_type, 64)
        )

    def sizes(self, small: bool) -> list[Any]:
        """The image as ``tokenops.analysis.cost`` takes it."""
        kind = self.config(small).model_type
        if kind == "qwen2_5_vl":
            rows, columns = (8, 8) if small else self.size
            return [(1, 2 * rows, 2 * columns)]
        return [self.visual(small) if kind == "llava" else (112, 112) if small else self.size]

    def inputs(self, small: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Half of 64 words, the image, the other half."""
        config = self.config(small)
        g = torch.Generator().manual_seed(1)
        words = torch.randint(100, config.text_config.vocab_size, (TEXT,), generator=g).tolist()
        given, places = _picture(config, (8, 8) if small else self.size, self.visual(small), g)
        image = [IMAGE] * places
        if config.model_type == "qwen2_5_vl":
            image = [VISION_START, *image, VISION_END]
        ids = torch.tensor([words[: TEXT // 2] + image + words[TEXT // 2 :]])
        out = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}
        if config.model_type == "qwen2_5_vl":
            out["mm_token_type_ids"] = (ids == IMAGE).int()
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in out.items()}


def _picture(config: Any, size: tuple[int, int], visual: int, g: Any) -> tuple[dict[str, Tensor], int]:
    """Pixels as the family wants them, and their placeholders: line breaks are some of them."""
    tower = config.vision_config
    if config.model_type == "qwen2_5_vl":
        merge = tower.spatial_merge_size
        rows, columns = (n * merge for n in size)
        width = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        pixels = torch.randn(rows * columns, width, generator=g)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]])}, visual
    side = tower.image_size
    if config.model_type == "llava":
        return {"pixel_values": torch.randn(1, 3, side, side, generator=g)}, visual
    pixels = torch.randn(1, 5, 3, side, side, generator=g)
    lines = 2 * side // tower.patch_size
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[2 * side, 2 * side]])}, visual + lines


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the changes, those of dicts inside merged alike."""
    nested = {k: _merged(base[k], v) for k, v in changes.items() if isinstance(base.get(k), Mapping)}
    return {**base, **changes, **nested}


# 6,806 = 82 x 83 is the rectangle nearest to the 6,828 of the VisionSelector paper
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("LLaVA-1.5-7B", "llava-1.5-7b", 576, (336, 336)),
        Shape("LLaVA-NeXT-7B", "llava-next-7b", 2880, (672, 672)),
        Shape("Qwen2.5-VL-7B, 1,296", "qwen2.5-vl-7b", 1296, (36, 36)),
        Shape("Qwen2.5-VL-7B, 6,806", "qwen2.5-vl-7b", 6806, (82, 83)),
    )
}
