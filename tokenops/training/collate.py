"""From question–answer records to batches with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError

_ROWS = {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0}


class Collator:
    """Batches of ``{"images": [...], "prompt": str, "answer": str}`` for training.

    ``images`` is one image or a list of them (PIL or arrays; ``"videos"`` likewise, or neither).
    ``prompt`` is what the processor expects, placeholders included. The answer's tokens and an end token
    follow it; labels are -100 everywhere else. Rows are padded on the left.

    Args:
        processor: the model's processor.
        end: append the tokenizer's end token to the answer.

    Shapes: -> input_ids, attention_mask, labels (b l) and the visual inputs as the processor shapes them.

    Raises:
        TokenOpsError: a record without prompt or answer (the Trainer removes them unless its
            ``remove_unused_columns=False``), no processor, a tokenizer without a padding token.

    >>> from tokenops import pocket
    >>> _, processor = pocket.load()
    >>> scene = pocket.scenes(1, "heldout", seed=1)[0]
    >>> asked = scene.questions()[0]
    >>> batch = Collator(processor)([{"images": scene.image, "prompt": asked.prompt, "answer": asked.answer}])
    >>> batch["labels"][0, -3:].tolist() == [-100, *batch["input_ids"][0, -2:].tolist()]
    True
    """

    def __init__(self, processor: Any, *, end: bool = True) -> None:
        self.processor, self.end = processor, end
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        if self.tokenizer is None:
            raise TokenOpsError("Collator", "a processor with a tokenizer", type(processor).__name__)
        if self.tokenizer.pad_token_id is None:
            raise TokenOpsError("Collator", "a tokenizer with a padding token", "none")

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Records to ``input_ids``, ``attention_mask``, ``labels`` and the model's visual inputs."""
        for record in records:
            if not {"prompt", "answer"} <= set(record):
                what = "records with prompt and answer (TrainingArguments: remove_unused_columns=False)"
                raise TokenOpsError("Collator", what, sorted(record))
        prompts = dict(self._process(records))
        real = prompts["attention_mask"].bool()
        answers = [self._answer(record["answer"]) for record in records]
        lengths = [int(r.sum()) + len(a) for r, a in zip(real, answers, strict=True)]
        rows = {name: prompts.pop(name) for name in _ROWS if name in prompts}
        out = {name: self._extend(name, value, real, answers, max(lengths)) for name, value in rows.items()}
        labels = torch.full_like(out["input_ids"], -100)
        for i, answer in enumerate(answers):
            labels[i, -len(answer) :] = torch.tensor(answer)
        return {**out, "labels": labels, **prompts}

    def _process(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        visual: dict[str, Any] = {}
        for name in ("images", "videos"):
            given = [record.get(name) for record in records]
            listed = [x if isinstance(x, (list, tuple)) else [x] for x in given if x is not None]
            if flat := [image for images in listed for image in images]:
                visual[name] = flat
        texts = [record["prompt"] for record in records]
        return self.processor(text=texts, padding=True, return_tensors="pt", **visual)

    def _answer(self, answer: str) -> list[int]:
        ids = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        if self.end and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        if not ids:
            raise TokenOpsError("Collator", "an answer of at least one token", repr(answer))
        return ids

    def _extend(
        self, name: str, value: Tensor, real: Tensor, answers: Sequence[Sequence[int]], length: int
    ) -> Tensor:
        fill = self.tokenizer.pad_token_id if name == "input_ids" else _ROWS[name]
        out = value.new_full((len(answers), length), fill)
        for i, answer in enumerate(answers):
            tail = list(answer) if name == "input_ids" else [int(name == "attention_mask")] * len(answer)
            row = torch.cat([value[i][real[i]], value.new_tensor(tail)])
            out[i, length - row.shape[0] :] = row
        return out
