"""From pictures and a question to what ``generate`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenops.errors import TokenOpsError


def pictures(images: Any) -> list[Any]:
    """One picture or several as a list of RGB pictures of PIL, turned as their camera said.

    Raises:
        TokenOpsError: something that is no picture of PIL.
    """
    from PIL import Image, ImageOps

    given = list(images) if isinstance(images, Sequence) else [images]
    for image in given:
        if not isinstance(image, Image.Image):
            raise TokenOpsError("report", "images of PIL", type(image).__name__)
    return [ImageOps.exif_transpose(image).convert("RGB") for image in given]


def prompt(processor: Any, images: int, videos: int, question: str) -> str:
    """The question in the model's chat template, pictures first; as it is if it has placeholders already."""
    tokens = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    if any(token and token in question for token in tokens):
        return question
    if getattr(processor, "chat_template", None) is None:
        marks = [t or "" for t, n in zip(tokens, (images, videos), strict=True) for _ in range(n)]
        return " ".join([*marks, question])
    parts = [{"type": "image"}] * images + [{"type": "video"}] * videos
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def encode(model: Any, processor: Any, images: list[Any], videos: list[Any], question: str) -> dict[str, Any]:
    """The processor's output for one prompt, on the model's device and in its dtype.

    Raises:
        TokenOpsError: neither images nor videos, a question that is no string, a processor without images or,
            where there are videos, without those, or pictures and placeholders that do not fit.
    """
    if not images and not videos:
        raise TokenOpsError("report", "at least one image or video", "text only: nothing to select")
    if not isinstance(question, str):
        raise TokenOpsError("report", "a question as a string", type(question).__name__)
    for name, some in (("image", images), ("video", videos)):
        if some and getattr(processor, f"{name}_processor", None) is None:
            raise TokenOpsError("report", f"a processor with a {name} processor", type(processor).__name__)
    given = {"images": images, "videos": videos}
    try:
        text = prompt(processor, len(images), len(videos), question)
        inputs = processor(
            text=[text], return_tensors="pt", **{name: some for name, some in given.items() if some}
        )
    except (ValueError, TypeError, IndexError, StopIteration) as error:
        raise TokenOpsError("report", "images and a question that the processor takes", error) from error
    return dict(inputs.to(model.device, dtype=model.dtype))


def generate(model: Any, inputs: dict[str, Any], most: int) -> Any:
    """(n) the new tokens, chosen greedily."""
    own = model.generation_config
    out = model.generate(
        **inputs,
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0 if own.pad_token_id is None else own.pad_token_id,
    )
    return out[0, inputs["input_ids"].shape[1] :]
