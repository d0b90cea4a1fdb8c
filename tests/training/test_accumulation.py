"""One step of four rows and four steps of one row give the same gradient, in the real Trainer too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integrations import tiny
from training import kit

RATE = 0.5


@pytest.mark.parametrize("gate", ["attention", "multiply"])
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_the_loss_is_a_sum_over_rows(family: str, gate: str) -> None:
    rows = kit.rows(family)
    batch = tiny.batch(rows)
    t = kit.trainable(family, gate=gate)
    together = t(**batch)["loss"]
    together.backward()
    wanted = kit.gradients(t)
    for total in (kit.label_tokens(batch), torch.tensor(kit.label_tokens(batch))):
        t.zero_grad()
        losses = [t(**row, num_items_in_batch=total)["loss"] for row in rows]
        torch.stack(losses).sum().backward()
        assert torch.stack(losses).sum().item() == pytest.approx(together.item(), rel=1e-5)
        kit.assert_near(kit.gradients(t), wanted, rtol=1e-3)


@pytest.mark.parametrize("gate", ["attention", "multiply"])
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_trainer_accumulation(family: str, gate: str, tmp_path: Path) -> None:
    rows = kit.rows(family)
    direct = kit.trainable(family, gate=gate)
    before = kit.weights(direct)
    loss = direct(**tiny.batch(rows))["loss"]
    loss.backward()
    wanted = {name: -RATE * g for name, g in kit.gradients(direct).items()}
    for size in (4, 2, 1):
        t = kit.trainable(family, gate=gate)
        trainer = kit.trainer(
            t, tmp_path, rows, max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size, optim="sgd", learning_rate=RATE,
            lr_scheduler_type="constant", max_grad_norm=0.0,
        )  # fmt: skip
        result = trainer.train()
        step = {name: value - before[name] for name, value in kit.weights(t).items()}
        kit.assert_near(step, wanted, rtol=2e-3)
        assert result.training_loss == pytest.approx(loss.item(), rel=1e-5)
        assert trainer.state.global_step == 1


def test_a_label_on_the_first_token_is_not_counted(tmp_path: Path) -> None:
    """It cannot be predicted; the Trainer leaves it out of num_items_in_batch, too."""
    rows = [dict(row) for row in kit.many("llava", 2)]
    rows[0]["labels"] = rows[0]["labels"].clone()
    rows[0]["labels"][0, 0] = 5
    wanted = kit.trainable()(**tiny.batch(rows, "right"))["loss"].item()
    result = kit.trainer(
        kit.trainable(), tmp_path, rows, collate=lambda r: tiny.batch(r, "right"), max_steps=1
    ).train()
    assert result.training_loss == pytest.approx(wanted, rel=1e-5)
