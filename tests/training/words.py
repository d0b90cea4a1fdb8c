"""Real processors of one tiny vocabulary: LLaVA's, and one that speaks like Qwen2.5-VL's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from integrations import tiny
from torch import Tensor

TEXT = "<pad> <bos> <eos> <unk> what is this that colour red green blue two images ? ! ."
SPECIAL = {
    "<image>": tiny.IMAGE,
    "<video>": tiny.VIDEO,
    "<start>": tiny.VISION_START,
    "<end>": tiny.VISION_END,
}


def vocabulary() -> dict[str, int]:
    return {word: i for i, word in enumerate(TEXT.split())} | SPECIAL


def tokenizer(side: str = "left", **changes: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side=side, additional_special_tokens=list(SPECIAL), **named | changes
    )


def llava(**changes: Any) -> Any:
    """16×16 images in patches of 4: 16 placeholders each."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer(**changes), patch_size=4, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


class Qwen:
    """What Qwen2.5-VL's processor returns, for "images" that are (t, h, w) grids of patches."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def __call__(
        self, text: Sequence[str], padding: bool, return_tensors: str, **visual: Any
    ) -> dict[str, Tensor]:
        assert padding
        assert return_tensors == "pt"
        queues = {name: list(visual.get(f"{name}s", ())) for name in ("image", "video")}
        grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
        texts = []
        for prompt in text:
            words = []
            for word in prompt.split():
                kind = word.strip("<>")
                if kind in queues:
                    grid = queues[kind].pop(0)
                    grids[kind].append(grid)
                    words += ["<start>", *[word] * (grid[0] * grid[1] * grid[2] // 4), "<end>"]
                else:
                    words.append(word)
            texts.append(" ".join(words))
        assert not any(queues.values())
        out = dict(self.tokenizer(texts, padding=True, return_tensors="pt"))
        ids = out["input_ids"]
        out["mm_token_type_ids"] = (ids == tiny.IMAGE).int() + 2 * (ids == tiny.VIDEO).int()
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if grids[kind]:
                patches = sum(t * h * w for t, h, w in grids[kind])
                g = torch.Generator().manual_seed(patches)
                out[name] = torch.randn(patches, 3 * 2 * 4 * 4, generator=g)
                out[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
        return out
