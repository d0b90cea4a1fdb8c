"""Records to batches: labels on answers only, left padding, and the loss they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations import tiny
from PIL import Image
from torch.nn.functional import cross_entropy
from training import kit, words

from tokenops import TokenOpsError
from tokenops.training import Collator

PAD, BOS, EOS = 0, 1, 2
ID = words.vocabulary()


def image(seed: int, size: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


RECORDS: list[dict[str, Any]] = [
    {
        "images": [image(1), image(2, 20)],
        "prompt": "<image> <image> what colour is this ?",
        "answer": "red .",
    },
    {"images": image(3), "prompt": "what is <image> that ?", "answer": "blue green red !"},
    {"prompt": "what is this ?", "answer": "images"},
    {"images": [], "prompt": "what colour ?", "answer": "two . two ."},
    {"images": None, "prompt": "this ?", "answer": "that"},
]
SPOKEN = [["red", "."], ["blue", "green", "red", "!"], ["images"], ["two", ".", "two", "."], ["that"]]


def expected_row(record: dict[str, Any], spoken: list[str], end: bool = True) -> tuple[list[int], int]:
    """Token ids of a whole unpadded row, and how many of them are the answer's."""
    prompt = [BOS]
    for word in record["prompt"].split():
        prompt += [ID[word]] * (16 if word == "<image>" else 1)
    answer = [ID[word] for word in spoken] + [EOS] * end
    return prompt + answer, len(answer)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_masks_and_labels(side: str, end: bool) -> None:
    batch = Collator(words.llava(side=side), end=end)(RECORDS)
    rows = [expected_row(r, s, end) for r, s in zip(RECORDS, SPOKEN, strict=True)]
    length = max(len(ids) for ids, _ in rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    for i, (ids, answer) in enumerate(rows):
        pad = length - len(ids)
        assert batch["input_ids"][i].tolist() == [PAD] * pad + ids
        assert batch["attention_mask"][i].tolist() == [0] * pad + [1] * len(ids)
        assert batch["labels"][i].tolist() == [-100] * (length - answer) + ids[-answer:]
    assert batch["labels"].dtype == batch["input_ids"].dtype == torch.long
    assert not ((batch["input_ids"] == tiny.IMAGE) & (batch["labels"] != -100)).any()


def test_images_stay_with_their_rows() -> None:
    collator = Collator(words.llava())
    alone = [collator([record]) for record in RECORDS]
    together = collator(RECORDS)
    pixels = [one["pixel_values"] for one in alone if "pixel_values" in one]
    assert torch.equal(together["pixel_values"], torch.cat(pixels))
    assert "pixel_values" not in alone[2]
    for i, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        assert one["attention_mask"].all()
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(together[name][i, -length:], one[name][0])


def test_arrays_and_tuples_of_images() -> None:
    collator = Collator(words.llava())
    first = RECORDS[0]
    as_arrays = {**first, "images": tuple(np.array(x) for x in first["images"])}
    single = {**RECORDS[1], "images": np.array(RECORDS[1]["images"])}
    for changed, record in ((as_arrays, first), (single, RECORDS[1])):
        assert torch.equal(collator([changed])["pixel_values"], collator([record])["pixel_values"])


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_that_of_each_row_alone(training: bool) -> None:
    collator = Collator(words.llava())
    t = kit.trainable().train(training)
    batch = collator(RECORDS)
    together = t(**batch)["loss"]
    total = kit.label_tokens(batch)
    assert total == sum(len(s) + 1 for s in SPOKEN)
    alone = sum(t(**collator([r]), num_items_in_batch=total)["loss"] for r in RECORDS)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_the_loss_by_hand_on_an_unattached_model() -> None:
    """keep = 1: answers and end tokens, each predicted by the token before it."""
    collator, model = Collator(words.llava()), tiny.llava()
    summed, count = 0.0, 0
    for record, spoken in zip(RECORDS, SPOKEN, strict=True):
        ids, answer = expected_row(record, spoken)
        visual = {k: v for k, v in collator([record]).items() if k == "pixel_values"}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **visual).logits[0]
        summed += cross_entropy(logits[-answer - 1 : -1], torch.tensor(ids[-answer:]), reduction="sum").item()
        count += answer
    loss = kit.trainable(keep=1.0)(**collator(RECORDS))["loss"]
    assert loss.item() == pytest.approx(summed / count, rel=1e-5)


def test_like_qwen() -> None:
    records: list[dict[str, Any]] = [
        {"images": [(1, 8, 8), (1, 4, 12)], "prompt": "<image> what <image> ?", "answer": "red"},
        {
            "images": (1, 4, 4),
            "videos": [(2, 4, 8)],
            "prompt": "<video> is <image> ?",
            "answer": "blue green",
        },
        {"prompt": "what ?", "answer": "two"},
    ]
    records[1]["images"] = [records[1]["images"]]
    collator = Collator(words.Qwen())
    batch = collator(records)
    ids, kinds = batch["input_ids"], batch["mm_token_type_ids"]
    assert torch.equal(kinds, (ids == tiny.IMAGE).int() + 2 * (ids == tiny.VIDEO).int())
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 4, 12], [1, 4, 4]]
    assert batch["video_grid_thw"].tolist() == [[2, 4, 8]]
    assert (batch["labels"] != -100).sum(1).tolist() == [2, 3, 2]
    assert (batch["attention_mask"].diff(dim=1) >= 0).all()
    t = kit.trainable("qwen2_5_vl")
    loss = t(**batch)["loss"]
    loss.backward()
    rows = collator(records[:1]), collator(records[1:])
    pixels = batch["pixel_values"].split([112, 16])
    total, parts = kit.label_tokens(batch), []
    for row, own in zip(rows, pixels, strict=True):
        parts.append(t(**{**row, "pixel_values": own, "num_items_in_batch": total})["loss"].item())
    assert loss.item() == pytest.approx(sum(parts), rel=1e-5)


def test_in_the_trainer(tmp_path: Path) -> None:
    t, processor = kit.trainable(), words.llava()
    trainer = kit.trainer(
        t, tmp_path, RECORDS, collate=Collator(processor), num_train_epochs=1, save_strategy="epoch",
        processing_class=processor, eval_dataset=RECORDS,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.evaluate()["eval_loss"] > 0
    assert (tmp_path / "checkpoint-3" / "processor_config.json").exists()


def test_the_trainers_default_removes_the_columns_and_is_named(tmp_path: Path) -> None:
    collator = Collator(words.llava())
    trainer = kit.trainer(
        kit.trainable(), tmp_path, RECORDS, collate=collator, max_steps=1, remove_unused_columns=True
    )
    with pytest.raises(TokenOpsError, match="remove_unused_columns=False"):
        trainer.train()


def test_bad_records_and_processors() -> None:
    collator = Collator(words.llava())
    for record in ({"prompt": "what ?"}, {"answer": "red"}, {"text": "what"}, {}):
        with pytest.raises(TokenOpsError, match="records with prompt and answer"):
            collator([RECORDS[0], record])
    with pytest.raises(TokenOpsError, match="at least one token"):
        Collator(words.llava(), end=False)([{"prompt": "what ?", "answer": ""}])
    assert kit.label_tokens(collator([{"prompt": "what ?", "answer": ""}])) == 1
    with pytest.raises(TokenOpsError, match="padding token"):
        Collator(words.llava(pad_token=None))
    with pytest.raises(TokenOpsError, match="processor with a tokenizer"):
        Collator(words.tokenizer())


def test_more_images_than_placeholders() -> None:
    """Said by the processor where it counts them, else by the attached model."""
    record = {"prompt": "<image> what ?", "answer": "red", "images": [image(1), image(2)]}
    with pytest.raises(ValueError, match=r"(?i)image"):
        kit.trainable()(**Collator(words.llava())([record]))


def test_a_tokenizer_without_an_end_token() -> None:
    batch = Collator(words.llava(eos_token=None))(RECORDS[:1])
    assert (batch["labels"] != -100).sum() == 2
