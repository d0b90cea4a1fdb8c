"""Tiny random models of every family, built from the real config classes, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, PAD, VISION_START, VISION_END = 90, 91, 0, 92, 93
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # spread-out weights, so that dropping the wrong token shows far above rounding
    "initializer_range": 0.2,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.2,
}


def llava(**changes: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        **changes,
    )
    return LlavaForConditionalGeneration(config).eval()


def llava_next(**changes: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        **changes,
    )
    return LlavaNextForConditionalGeneration(config).eval()


def qwen(**changes: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 2, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope, "rope_scaling": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": TEXT["hidden_size"],
            "in_channels": 3,
            "initializer_range": 0.2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        **changes,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


MODELS = {"llava": llava, "llava_next": llava_next, "qwen2_5_vl": qwen}


@dataclass
class Picture:
    """One image or video: pixels as the family wants them and its placeholder count."""

    size: int
    inputs: dict[str, Tensor]
    kind: str = "image"


def picture(family: str, which: int, seed: int) -> Picture:
    """Image number ``which`` of a family: different sizes where the family allows."""
    g = torch.Generator().manual_seed(1000 + seed)
    if family == "llava":
        return Picture(16, {"pixel_values": torch.randn(1, 3, 16, 16, generator=g)})
    if family == "llava_next":
        h, w = [(16, 16), (20, 30), (40, 18), (30, 32)][which % 4]
        crops, size = _anyres(h, w)
        pixels = torch.randn(1, crops, 3, 16, 16, generator=g)
        return Picture(size, {"pixel_values": pixels, "image_sizes": torch.tensor([[h, w]])})
    t, h, w = [(1, 8, 8), (1, 4, 12), (2, 4, 8), (1, 4, 4)][which % 4]
    kind = "video" if t > 1 else "image"
    pixels = torch.randn(t * h * w, 3 * 2 * 4 * 4, generator=g)
    name = "pixel_values_videos" if kind == "video" else "pixel_values"
    return Picture(t * h * w // 4, {name: pixels, f"{kind}_grid_thw": torch.tensor([[t, h, w]])}, kind)


@cache
def _anyres(h: int, w: int) -> tuple[int, int]:
    """Crops and placeholders of an image of this size, counted by the model's own packing."""
    model = llava_next().model
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    crops = image_size_to_num_patches(torch.tensor([h, w]), model.config.image_grid_pinpoints, 16)
    packed, _ = model.pack_image_features(
        [torch.zeros(crops, 16, 1)],
        torch.tensor([[h, w]]),
        vision_feature_select_strategy="default",
        image_newline=torch.zeros(1),
    )
    return crops, packed[0].shape[0]


def sample(family: str, images: list[int], seed: int, text: tuple[int, ...] = (3, 4)) -> dict[str, Any]:
    """One prompt: text, image, text, image, ..., text; unpadded, batch of one."""
    g = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(3, 80, (n,), generator=g).tolist()  # noqa: E731
    ids, pictures = [1, *words(text[0])], []
    for i, which in enumerate(images):
        p = picture(family, which, seed * 10 + i)
        pictures.append(p)
        token = VIDEO if p.kind == "video" else IMAGE
        block = [token] * p.size
        ids += ([VISION_START, *block, VISION_END] if family == "qwen2_5_vl" else block) + words(text[1])
    out: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    if family == "qwen2_5_vl":
        out["mm_token_type_ids"] = (out["input_ids"] == IMAGE).int() + 2 * (out["input_ids"] == VIDEO).int()
    return merge(out, pictures)


def merge(out: dict[str, Any], pictures: list[Picture]) -> dict[str, Any]:
    names = {name for p in pictures for name in p.inputs}
    for name in names:
        values = [p.inputs[name] for p in pictures if name in p.inputs]
        if name == "pixel_values" and values[0].ndim == 5:
            most = max(v.shape[1] for v in values)
            values = [
                torch.cat([v, v.new_zeros(v.shape[0], most - v.shape[1], *v.shape[2:])], 1) for v in values
            ]
        out[name] = torch.cat(values)
    return out


def batch(samples: list[dict[str, Any]], side: str = "left") -> dict[str, Any]:
    """Pad prompts to one batch."""
    length = max(s["input_ids"].shape[1] for s in samples)
    out: dict[str, Any] = {}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
        if name not in samples[0]:
            continue
        fill = {"input_ids": PAD, "labels": -100}.get(name, 0)
        rows = []
        for s in samples:
            pad = s[name].new_full((1, length - s[name].shape[1]), fill)
            rows.append(torch.cat([pad, s[name]] if side == "left" else [s[name], pad], 1))
        out[name] = torch.cat(rows)
    pictures = []
    for s in samples:
        inputs = {k: v for k, v in s.items() if k not in out}
        pictures.append(Picture(0, inputs))
    return merge(out, pictures)
