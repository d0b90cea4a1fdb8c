"""A run that stops and resumes equals one that does not, to the bit: weights, optimizer, dropout, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import kit
from transformers import TrainerCallback

from tokenops.training import Trainable, linear

TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


class Progress(TrainerCallback):
    """Progress as each step sees it."""

    def __init__(self, t: Trainable) -> None:
        self.t, self.seen = t, list[float]()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.seen.append(self.t.progress)

    on_step_end = on_substep_end


def run(
    folder: Path, family: str, seed: int, resume: Path | None = None
) -> tuple[Trainable, Any, list[float]]:
    t = kit.trainable(family, seed=seed, curriculum=linear(0.1, 2.0))
    for layer in t.model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    progress = Progress(t)
    trainer = kit.trainer(
        t, folder, kit.many(family, 7), (progress,), num_train_epochs=3, gradient_accumulation_steps=2,
        per_device_train_batch_size=1, save_strategy="steps", save_steps=5, learning_rate=1e-2,
        lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.01,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return t, trainer, progress.seen


def comparable(trainer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in trainer.state.log_history]


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_resume_equals_an_uninterrupted_run(family: str, tmp_path: Path) -> None:
    whole, trainer, progress = run(tmp_path / "whole", family, seed=1)
    last = trainer.state.max_steps
    assert last == 12
    # another seed: every weight must come from the checkpoint
    again, resumed, rest = run(tmp_path / "again", family, seed=2, resume=tmp_path / "whole" / "checkpoint-5")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert comparable(resumed) == comparable(trainer)
    assert progress[-len(rest) :] == rest
    assert 0 < len(rest) < len(progress)
    both = [tmp_path / name / f"checkpoint-{last - 2}" for name in ("whole", "again")]
    for file in ("optimizer.pt", "scheduler.pt"):
        first, second = (torch.load(folder / file, weights_only=True) for folder in both)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (both[0] / "model.safetensors").read_bytes() == (both[1] / "model.safetensors").read_bytes()


def test_resume_without_weights_fails_loudly(tmp_path: Path) -> None:
    run(tmp_path / "run", "llava", seed=1)
    folder = tmp_path / "run" / "checkpoint-5"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="valid checkpoint"):
        run(tmp_path / "again", "llava", seed=2, resume=folder)


def test_resume_with_a_tensor_missing_is_the_trainers_warning(tmp_path: Path) -> None:
    """Not an AttributeError on the way to it."""
    run(tmp_path / "run", "llava", seed=1)
    file = tmp_path / "run" / "checkpoint-5" / "model.safetensors"
    stored = load_file(file)
    del stored["pipeline.after_projector.selector.scorer.q_proj.bias"]
    save_file(stored, file, metadata={"format": "pt"})
    _, trainer, _ = run(tmp_path / "again", "llava", seed=2, resume=file.parent)
    assert trainer.state.global_step == 12
