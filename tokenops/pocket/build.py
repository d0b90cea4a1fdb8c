"""The untrained pocket VLM: a small ``LlavaForConditionalGeneration`` and its processor.

A CLIP vision tower with a CLS token (96x96 image, 8x8 patches, 144 visual tokens), the usual two-layer
projector, and a Llama with grouped-query attention and tied embeddings over a vocabulary of about forty
words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenops.pocket.painting import COLOUR_NAMES, IMAGE_SIZE, PATCH
from tokenops.pocket.scenes import DIGIT_WORDS, QUADRANTS

if TYPE_CHECKING:
    from transformers import (
        CLIPVisionConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
NOTHING = "nothing"
VOCABULARY: tuple[str, ...] = (
    *(PAD, BOS, EOS, UNK, IMAGE),
    *("what", "where", "how", "many", "coloured", "digit", "digits", "is", "?", NOTHING),
    *DIGIT_WORDS,
    *COLOUR_NAMES,
    *QUADRANTS,
)
TOKEN_ID: dict[str, int] = {word: index for index, word in enumerate(VOCABULARY)}
IMAGE_MEAN, IMAGE_STD = 0.25, 0.25
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}<eos> {% endif %}{% endfor %}"
)


def _vision_config(width: int) -> CLIPVisionConfig:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=width,
        hidden_act="gelu",
    )


def build_model(width: int = 128, seed: int = 0) -> LlavaForConditionalGeneration:
    """The model with random weights, fewer than 1.4 million at the default width.

    >>> model = build_model()
    >>> sum(p.numel() for p in model.parameters()) < 1_400_000
    True
    """
    import torch
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=TOKEN_ID[PAD],
        bos_token_id=TOKEN_ID[BOS],
        eos_token_id=TOKEN_ID[EOS],
    )
    config = LlavaConfig(
        vision_config=_vision_config(width),
        text_config=text,
        image_token_id=TOKEN_ID[IMAGE],
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config)


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(TOKEN_ID, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, TOKEN_ID[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=512,
    )


def build_processor() -> LlavaProcessor:
    """The processor: CLIP image processor and a left-padding word-level tokenizer.

    >>> processor = build_processor()
    >>> ids = processor.tokenizer("where is seven ?").input_ids
    >>> ids == [TOKEN_ID[word] for word in (BOS, "where", "is", "seven", "?")]
    True
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
