"""Full-size architectures from the real config classes, with random weights, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE, VISION_START, VISION_END = 90, 92, 93  # ids of random words start above them
TEXT = 64
VICUNA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}
QWEN: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
}
CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "out_hidden_size": 3584,
}
# what --small changes: everything keeps its place, at sizes that a test can run
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
}
TINY_CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 48,
}


@dataclass(frozen=True)
class Shape:
    """An architecture and an image for it: its size in pixels, for Qwen in rows and columns of tokens."""

    name: str
    make: Callable[[bool], Any]
    tokens: int
    size: tuple[int, int]

    def config(self, small: bool) -> Any:
        """Of the whole model."""
        return self.make(small)

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


def _llava(small: bool) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tower = CLIP_LARGE | (TINY_CLIP | {"image_size": 56} if small else {})
    text = VICUNA | (TINY_TEXT | {"num_key_value_heads": 4} if small else {})
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**tower),
        text_config=LlamaConfig(**text),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        image_seq_length=16 if small else 576,
    )


def _llava_next(small: bool) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    tower = CLIP_LARGE | (TINY_CLIP | {"image_size": 56} if small else {})
    text = VICUNA | (TINY_TEXT | {"num_key_value_heads": 4} if small else {})
    side = tower["image_size"]
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tower),
        text_config=LlamaConfig(**text),
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        image_seq_length=16 if small else 576,
    )


def _qwen(small: bool) -> Any:
    from transformers import Qwen2_5_VLConfig

    text = QWEN | (TINY_TEXT | {"num_key_value_heads": 2} if small else {})
    sections = [1, 2, 3] if small else [16, 24, 24]
    rope = {"rope_type": "default", "type": "default", "mrope_section": sections, "rope_theta": 1e6}
    return Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope, "rope_scaling": rope},
        vision_config=QWEN_TOWER | (TINY_TOWER | {"fullatt_block_indexes": [1]} if small else {}),
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


# 6,806 = 82 x 83 is the rectangle nearest to the 6,828 of the VisionSelector paper
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("LLaVA-1.5-7B", _llava, 576, (336, 336)),
        Shape("LLaVA-NeXT-7B", _llava_next, 2880, (672, 672)),
        Shape("Qwen2.5-VL-7B, 1,296", _qwen, 1296, (36, 36)),
        Shape("Qwen2.5-VL-7B, 6,806", _qwen, 6806, (82, 83)),
    )
}
