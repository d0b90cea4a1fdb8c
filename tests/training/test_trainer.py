"""Trainable and Curriculum inside the real Trainer: checkpoints, logs, evaluation, saved pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import tiny
from safetensors.torch import load_file
from training import kit

import tokenops
from tokenops import TokenOpsError
from tokenops.training import Curriculum, linear

METRICS = {"task_loss", "soft_hard_bce", "soft_hard_gap", "curriculum"}


def losses(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_checkpoints_hold_the_pipeline_only(tmp_path: Path) -> None:
    t = kit.trainable()
    kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=2, save_strategy="steps", save_steps=1).train()
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert not list(folder.glob("pytorch_model*"))
        stored = load_file(folder / "model.safetensors")
        assert list(stored) == sorted(t.state_dict())
        moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        assert len(moments) == 4
    assert all(torch.equal(stored[name], value) for name, value in t.state_dict().items())
    assert sum(f.stat().st_size for f in folder.iterdir()) < 200_000


def test_the_curriculum_follows_the_steps_and_is_logged(tmp_path: Path) -> None:
    t, data = kit.trainable(curriculum=linear(0.5, 2.5)), kit.many("llava", 8)
    trainer = kit.trainer(t, tmp_path, data, num_train_epochs=2)
    result = trainer.train()
    logged = losses(trainer)
    assert trainer.state.max_steps == len(logged) == 8
    assert [entry["curriculum"] for entry in logged] == pytest.approx([0.5 + 2 * i / 8 for i in range(8)])
    for entry in logged:
        assert set(entry) >= METRICS
        assert entry["loss"] == pytest.approx(
            entry["task_loss"] + entry["curriculum"] * entry["soft_hard_bce"], rel=0.5
        )
        assert 0 <= entry["soft_hard_gap"] <= 1
        json.dumps(entry)
    assert t.progress == 7 / 8
    assert not METRICS & set(result.metrics)
    assert not METRICS & set(trainer.state.log_history[-1])


def test_logging_every_few_steps(tmp_path: Path) -> None:
    t = kit.trainable(curriculum=linear(0.0, 1.0))
    trainer = kit.trainer(t, tmp_path, kit.many("llava", 8), max_steps=4, logging_steps=2)
    trainer.train()
    assert [entry["curriculum"] for entry in losses(trainer)] == pytest.approx([0.25, 0.75])


def test_evaluate(tmp_path: Path) -> None:
    t, held_out = kit.trainable(), kit.many("llava", 3)
    trainer = kit.trainer(
        t, tmp_path, kit.many("llava", 8), max_steps=4, eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=3, eval_dataset=held_out,
    )  # fmt: skip
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    # training went on softly in between
    assert all("soft_hard_bce" in entry for entry in losses(trainer))
    with torch.no_grad():
        wanted = t.eval()(**tiny.batch(held_out))["loss"].item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-6)
    assert evaluations[-1]["eval_loss"] == pytest.approx(wanted, rel=1e-6)


def test_metrics_see_hard_predictions_of_several_lengths(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def accuracy(prediction: Any) -> dict[str, float]:
        logits, labels = map(torch.as_tensor, (prediction.predictions, prediction.label_ids))
        seen["shape"] = logits.shape
        known = labels[:, 1:] != -100
        return {"accuracy": (logits[:, :-1].argmax(-1) == labels[:, 1:])[known].float().mean().item()}

    t, data = kit.trainable(), kit.rows("llava")
    trainer = kit.trainer(
        t, tmp_path, data, eval_dataset=data, compute_metrics=accuracy, per_device_eval_batch_size=2
    )
    metrics = trainer.evaluate()
    assert seen["shape"] == (4, max(r["input_ids"].shape[1] for r in data), tiny.TEXT["vocab_size"])
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert trainer.predict(data).predictions.shape == seen["shape"]


def kept(trace: Any) -> list[list[int]]:
    return [t.index.tolist() for t in trace]


def test_a_saved_pipeline_selects_the_same(tmp_path: Path) -> None:
    t, batch = kit.trainable(), tiny.batch(kit.rows("llava"))
    untrained = kit.pipeline().eval()
    trainer = kit.trainer(t, tmp_path / "run", kit.many("llava", 8), max_steps=4, learning_rate=0.1)
    trainer.train()
    t.eval()
    with torch.no_grad():
        logits = t(**batch)["logits"]
    tokenops.save(t.pipeline, tmp_path / "saved")
    found = {}
    for name, pipeline in {"saved": tokenops.load(tmp_path / "saved"), "untrained": untrained}.items():
        model = tiny.llava().eval()
        with tokenops.attach(model, pipeline) as handle, torch.no_grad():
            found[name] = model(**batch, use_cache=False).logits, kept(handle.trace)
    assert torch.equal(found["saved"][0], logits)
    assert found["saved"][1] == kept(t.handle.trace) != found["untrained"][1]


def test_bf16_training_arguments(tmp_path: Path) -> None:
    """Autocast of the Trainer: the loss stays close, the scorer float32."""
    found = []
    for bf16 in (False, True):
        t = kit.trainable()
        trainer = kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=2, bf16=bf16)
        trainer.train()
        found.append(losses(trainer)[0]["loss"])
        assert {p.dtype for p in t.parameters()} == {torch.float32}
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_mixed_text_and_image_batches(tmp_path: Path) -> None:
    """Every micro-batch of its own kind, accumulated and clipped."""
    data = [
        row
        for pair in zip(kit.many("llava", 3), [kit.row("llava", [], 9, 3)] * 3, strict=True)
        for row in pair
    ]
    t = kit.trainable()
    before = kit.weights(t)
    trainer = kit.trainer(
        t, tmp_path, data, num_train_epochs=2, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    trainer.train()
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in losses(trainer))
    assert not all(torch.equal(before[name], value) for name, value in t.state_dict().items())


def test_curriculum_wants_a_trainable() -> None:
    with pytest.raises(TokenOpsError, match="a Trainable, got LearnedScorer"):
        Curriculum(kit.scorer())  # type: ignore[arg-type]


def test_the_best_checkpoint_comes_back(tmp_path: Path) -> None:
    t, data = kit.trainable(), kit.many("llava", 4)
    trainer = kit.trainer(
        t, tmp_path, data, max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, learning_rate=0.3, load_best_model_at_end=True, eval_dataset=data,
    )  # fmt: skip
    trainer.train()
    best = min(
        (entry["eval_loss"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry
    )
    assert trainer.state.best_metric == best[0]
    stored = load_file(tmp_path / f"checkpoint-{best[1]}" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in t.state_dict().items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[0])


def test_generate_with_what_was_trained(tmp_path: Path) -> None:
    t, prompt = kit.trainable(), tiny.batch([tiny.sample("llava", [0, 1], 1), tiny.sample("llava", [], 2)])
    kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=1).train()
    said = t.eval().model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert [t.k for t in t.handle.trace] == [4, 4]
    model = tiny.llava()
    with tokenops.attach(model, t.pipeline):
        assert torch.equal(model.generate(**prompt, max_new_tokens=3, do_sample=False), said)


def test_without_the_callback_progress_stays(tmp_path: Path) -> None:
    t = kit.trainable(curriculum=linear(0.5, 1.0))
    trainer = kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=2)
    trainer.remove_callback(Curriculum)
    trainer.train()
    assert t.progress == 0.0
    assert not METRICS & set(losses(trainer)[0])


def test_any_function_is_a_curriculum(tmp_path: Path) -> None:
    t = kit.trainable(curriculum=lambda p: 1.0 if p > 0.4 else 0)
    trainer = kit.trainer(t, tmp_path, kit.many("llava", 4), max_steps=2)
    trainer.train()
    assert [entry["curriculum"] for entry in losses(trainer)] == [0.0, 1.0]
