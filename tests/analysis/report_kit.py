"""Real processors at tiny size, pictures of known colours, and a reader of finished pages."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from PIL import Image
from training import words

QUESTION = "what colour is this ?"


def processor(family: str) -> Any:
    return {"llava": words.llava, "llava_next": _llava_next, "qwen2_5_vl": _qwen}[family]()


def _llava_next() -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=words.tokenizer(),
        patch_size=4,
        image_token="<image>",
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _qwen() -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": 64, "longest_edge": 4096}
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    tokenizer = words.tokenizer(
        model_specific_special_tokens={"image_token": "<image>", "video_token": "<video>"}
    )
    template = (
        "{% for part in messages[0]['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else '<start> <' + part['type'] + '> <end> ' }}"
        "{% endfor %}"
    )
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**patches),
        tokenizer,
        Qwen2VLVideoProcessor(**patches, cap_pixels_per_frame=False),
        chat_template=template,
    )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blocks of 4 pixels, each with a colour of its own."""
    colours = np.random.default_rng(seed).integers(
        0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8
    )
    return Image.fromarray(colours.repeat(4, 0).repeat(4, 1)[:height, :width])


def data_of(page: str) -> Any:
    """The JSON block of a page, as a browser reads it."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)
