"""Images and prompts for calibration and training: JSON lines, or a folder of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenops.errors import TokenOpsError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Record:
    """A prompt about images on disk, perhaps with its answer; ``where`` is for messages."""

    images: tuple[Path, ...]
    prompt: str
    answer: str | None
    where: str

    def opened(self) -> list[Any]:
        """The images, as RGB.

        Raises:
            TokenOpsError: a file that is no image.
        """
        from PIL import Image

        found = []
        for path in self.images:
            try:
                with Image.open(path) as image:
                    found.append(image.convert("RGB"))
            except (OSError, Image.DecompressionBombError) as error:
                raise TokenOpsError(self.where, f"an image that can be read in {path}", error) from None
        return found

    def text(self, processor: Any) -> str:
        """The prompt as the processor wants it: with a placeholder for each image.

        A prompt that holds the placeholders is taken as it is; another goes through the chat template, or,
        where the processor has none, behind the placeholders.

        Raises:
            TokenOpsError: another number of placeholders than images, or a processor without either.
        """
        token = getattr(processor, "image_token", None)
        if token and (found := self.prompt.count(token)):
            if found != len(self.images):
                raise TokenOpsError(self.where, f"{len(self.images)} {token} in the prompt, or none", found)
            return self.prompt
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"} for _ in self.images] + [{"type": "text", "text": self.prompt}]
            messages = [{"role": "user", "content": content}]
            return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if not token:
            what = "a processor with a chat template or an image_token"
            raise TokenOpsError(self.where, what, type(processor).__name__)
        return f"{token * len(self.images)}\n{self.prompt}"

    def encoded(self, processor: Any) -> Any:
        """The processor's output for this record alone."""
        images, text = self.opened(), self.text(processor)
        return processor(images=images, text=[text], padding=True, return_tensors="pt")


@dataclass(frozen=True)
class Examples:
    """Records as the Collator wants them, opened when they are asked for."""

    records: Sequence[Record]
    processor: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        found = {"prompt": record.text(self.processor), "answer": record.answer}
        return found | ({"images": record.opened()} if record.images else {})


def read_records(who: str, source: Path, prompt: str, *, answers: bool) -> list[Record]:
    """Records of a file of JSON lines, or of all images of a folder, each with ``prompt``.

    Every line is checked, and that its images are there, before any is opened. Paths are relative to the
    file. With ``answers`` every record needs one, may have no image, and a folder will not do.

    Raises:
        TokenOpsError: no such file, an empty one, or a line without what it needs; the line is named.
    """
    if source.is_dir():
        if answers:
            raise TokenOpsError(who, "--data as a file of JSON lines, with answers", f"the folder {source}")
        found = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise TokenOpsError(who, f"images in {source} ({' '.join(SUFFIXES)})", "none")
        return [Record((path,), prompt, None, who) for path in found]
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "a file of JSON lines" if answers else "a file of JSON lines or a folder of images"
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        raise TokenOpsError(who, f"--data as {what}", f"{source}: {got}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise TokenOpsError(who, f"JSON lines in {source}", "an empty file")
    return [_record(f"{source} line {n}", line, source.parent, answers) for n, line in numbered]


def fingerprint(records: Sequence[Record]) -> str:
    """A hash of prompts, answers and paths, to tell one run from another."""
    found = hashlib.sha256()
    for r in records:
        found.update(json.dumps([[str(p.resolve()) for p in r.images], r.prompt, r.answer]).encode())
    return found.hexdigest()


def _record(where: str, line: str, folder: Path, answers: bool) -> Record:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise TokenOpsError(where, "a JSON object on every line", error) from None
    if not isinstance(given, dict):
        raise TokenOpsError(where, "a JSON object on every line", type(given).__name__)
    named = given.get("images", given.get("image", []))
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(n, str) and n for n in named):
        raise TokenOpsError(where, '"image": a path, or "images": paths', repr(named))
    if not named and not answers:
        raise TokenOpsError(where, '"image": a path, or "images": paths', ", ".join(given) or "nothing")
    texts = [given.get(key) for key in ("prompt", "answer")]
    for key, text in zip(("prompt", "answer")[: 1 + answers], texts, strict=False):
        if not isinstance(text, str) or not text:
            raise TokenOpsError(where, f'"{key}": a text', "none" if text is None else repr(text))
    paths = tuple(folder / name for name in named)
    for path in paths:
        if not path.is_file():
            raise TokenOpsError(where, "images that are there", path)
    return Record(paths, str(texts[0]), texts[1] if answers else None, where)
