"""Answering the questions of scenes, with all visual tokens or with given patches only.

:func:`evaluate` uses nothing but the model's ordinary forward, so whatever is attached to the model takes
part. :func:`evaluate_kept` is the reference for dropping: the tokens of all other patches are removed from
the sequence and the kept ones keep their positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenops.errors import TokenOpsError
from tokenops.pocket.scenes import KINDS, Kind, Question, Scene

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor


@dataclass(frozen=True)
class Report:
    """Right answers and questions asked, per kind of question.

    >>> report = Report({"what": 9, "where": 5, "count": 4}, {"what": 10, "where": 10, "count": 4})
    >>> report.accuracy["where"], round(report.mean, 3)
    (0.5, 0.8)
    >>> report.total
    24
    """

    right: dict[Kind, int]
    asked: dict[Kind, int]

    @property
    def accuracy(self) -> dict[Kind, float]:
        """The share of right answers of every kind that was asked."""
        return {kind: self.right[kind] / self.asked[kind] for kind in KINDS if self.asked[kind]}

    @property
    def mean(self) -> float:
        """The mean over the kinds of questions, each counting the same."""
        return sum(self.accuracy.values()) / max(len(self.accuracy), 1)

    @property
    def total(self) -> int:
        """How many questions were asked."""
        return sum(self.asked.values())

    def __str__(self) -> str:
        """Mean, parts and number of questions on one line."""
        parts = [f"{kind} {value:.3f}" for kind, value in self.accuracy.items()]
        return f"mean {self.mean:.3f} ({', '.join(parts)}; {self.total} questions)"


def encode(processor: LlavaProcessor, scenes: Sequence[Scene], questions: Sequence[Question]) -> BatchFeature:
    """One left-padded batch: ``input_ids``, ``attention_mask`` (B, L), ``pixel_values`` (B, 3, 96, 96)."""
    images = [scene.image for scene in scenes]
    prompts = [question.prompt for question in questions]
    return processor(images=images, text=prompts, padding=True, return_tensors="pt")


def _batches(scenes: Sequence[Scene], size: int) -> Iterator[tuple[list[int], list[Scene], list[Question]]]:
    pairs = [(i, scene, question) for i, scene in enumerate(scenes) for question in scene.questions()]
    for start in range(0, len(pairs), size):
        rows, some, asked = zip(*pairs[start : start + size], strict=True)
        yield list(rows), list(some), list(asked)


def _tally(
    right: dict[Kind, int], asked: dict[Kind, int], guesses: list[str], questions: list[Question]
) -> None:
    for guess, question in zip(guesses, questions, strict=True):
        asked[question.kind] += 1
        right[question.kind] += guess == question.answer


def _words(processor: LlavaProcessor, logits: Tensor) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())


def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    batch_size: int = 64,
) -> Report:
    """Asks every question of every scene; the answer is the likeliest next word.

    >>> from tokenops.pocket.build import build_model, build_processor
    >>> from tokenops.pocket.scenes import scenes
    >>> evaluate(build_model(), build_processor(), scenes(1, "heldout", seed=0)).total >= 5
    True
    """
    import torch

    right, asked = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for _, some, questions in _batches(scenes, batch_size):
            inputs = encode(processor, some, questions).to(model.device, dtype=model.dtype)
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            _tally(right, asked, _words(processor, logits), questions)
    model.train(was_training)
    return Report(right, asked)


def visual_features(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """The projected visual tokens (B, 144, D)."""
    import torch

    features = model.get_image_features(pixel_values=pixel_values, return_dict=True)
    features = getattr(features, "pooler_output", features)
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def kept_logits(
    model: LlavaForConditionalGeneration, inputs: BatchFeature, keep: Tensor, features: Tensor | None = None
) -> Tensor:
    """Next-word logits (B, V) with only the patches ``keep`` (B, k) of each row's image in the sequence.

    ``features`` (B, 144, D) saves running the vision tower where they are known already.
    """
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows = ids.shape[0]
    is_image = ids == model.config.image_token_id
    features = visual_features(model, inputs["pixel_values"]) if features is None else features
    if keep.shape[0] != rows or keep.numel() == 0 or int(keep.max()) >= features.shape[1]:
        raise TokenOpsError(
            "kept_logits",
            f"patch indices (B={rows}, k) below {features.shape[1]}",
            f"shape {tuple(keep.shape)}",
        )
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))
    chosen = torch.zeros(features.shape[:2], dtype=torch.bool, device=ids.device).scatter_(1, keep, True)
    stays = (~is_image).masked_scatter(is_image, chosen)
    index = stays.nonzero()[:, 1].view(rows, -1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.model.language_model(
        inputs_embeds=embeds.gather(1, index.unsqueeze(-1).expand(-1, -1, embeds.shape[-1])),
        attention_mask=mask.gather(1, index),
        position_ids=positions.gather(1, index),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, -1])


def evaluate_kept(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    keep: Tensor,
    batch_size: int = 64,
) -> Report:
    """Like :func:`evaluate` with the patches ``keep`` (scenes, k) of each scene only.

    Raises:
        TokenOpsError: ``keep`` of another number of scenes, or with patches that are not there.

    >>> import torch
    >>> from tokenops.pocket.build import build_model, build_processor
    >>> from tokenops.pocket.scenes import scenes
    >>> keep = torch.arange(14).expand(1, -1)
    >>> evaluate_kept(build_model(), build_processor(), scenes(1, "heldout", seed=0), keep).total >= 5
    True
    """
    import torch

    if len(keep) != len(scenes):
        raise TokenOpsError(
            "evaluate_kept", f"one row of patches for each of {len(scenes)} scenes", str(len(keep))
        )
    right, asked = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    model.eval()
    with torch.no_grad():
        for rows, some, questions in _batches(scenes, batch_size):
            inputs = encode(processor, some, questions).to(model.device, dtype=model.dtype)
            same = torch.tensor(rows).unique_consecutive(return_inverse=True)[1]
            first = torch.tensor([rows.index(row) for row in dict.fromkeys(rows)])
            features = visual_features(model, inputs["pixel_values"][first])[same]
            logits = kept_logits(model, inputs, keep[rows].to(model.device), features)
            _tally(right, asked, _words(processor, logits), questions)
    return Report(right, asked)
