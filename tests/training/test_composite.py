"""The composite loss against plain loops, and which batches have which part of it."""

from __future__ import annotations

import pytest
import torch
from integrations import tiny
from training import by_hand, kit

import tokenops
from tokenops import TokenOpsError
from tokenops.training import Trainable, constant, linear

GATES = ("attention", "multiply")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_loss_and_gradient_by_hand(family: str, gate: str, side: str) -> None:
    rows, progress = kit.rows(family), 0.25
    t = kit.trainable(family, gate=gate, curriculum=linear(0.0, 2.0))
    t.progress = progress
    out = t(**tiny.batch(rows, side))
    out["loss"].backward()
    twin = kit.scorer()
    task, auxiliary = by_hand.composite(tiny.MODELS[family](), twin, rows, 0.3, gate, weight=0.5)
    (task + auxiliary).backward()
    assert out["loss"].item() == pytest.approx((task + auxiliary).item(), rel=1e-5)
    assert t.metrics["task_loss"].item() == pytest.approx(task.item(), rel=1e-5)
    assert t.metrics["curriculum"].item() == 0.5
    wanted = {f"pipeline.after_projector.selector.scorer.{n}": p.grad for n, p in twin.named_parameters()}
    got = kit.gradients(t)
    # all scores of an image shift with the bias of q: rounding on both sides
    assert wanted.keys() == got.keys()
    for name in [name for name in wanted if name.endswith("q_proj.bias")]:
        assert max(wanted.pop(name).norm(), got.pop(name).norm()) < 1e-4
    kit.assert_near(got, wanted, rtol=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_the_auxiliary_part_scales_with_the_curriculum(gate: str) -> None:
    batch = tiny.batch(kit.rows("llava"))
    losses = []
    for weight in (0.0, 1.0, 3.0):
        t = kit.trainable(gate=gate, curriculum=constant(weight))
        losses.append(t(**batch)["loss"].item())
        assert t.metrics["curriculum"].item() == weight
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0] + 0.1


def test_the_default_curriculum_is_the_papers() -> None:
    t = kit.trainable()
    for progress, weight in ((0.0, 0.1), (0.5, 1.05), (1.0, 2.0)):
        t.progress = progress
        t(**tiny.batch(kit.rows("llava")))
        assert t.metrics["curriculum"].item() == pytest.approx(weight)


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_evaluation_is_hard_and_has_the_task_loss_only(family: str) -> None:
    batch = tiny.batch(kit.rows(family))
    t = kit.trainable(family)
    soft = t(**batch)["logits"]
    with torch.no_grad():
        out = t.eval()(**batch)
    assert set(t.metrics) == {"task_loss"}
    assert t.handle.decision is not None
    assert t.handle.decision.chosen.gate is None
    model = tiny.MODELS[family]().eval()
    with tokenops.attach(model, kit.pipeline().eval()), torch.no_grad():
        wanted = model(**batch)
    assert torch.equal(out["logits"], wanted.logits)
    assert out["loss"].item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    assert t.metrics["task_loss"] == out["loss"]
    assert not torch.allclose(soft, out["logits"], atol=1e-3)


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_text_only_batches(family: str) -> None:
    """Also right after a batch with images, whose decision they must not reuse."""
    text, shown = tiny.batch([kit.row(family, [], 5, 3)] * 2), tiny.batch(kit.rows(family))
    plain = tiny.MODELS[family]()(**text).loss
    t = kit.trainable(family)
    for before in (False, True):
        if before:
            t(**shown)["loss"].backward()
        t.zero_grad()
        out = t(**text)
        out["loss"].backward()
        assert out["loss"].item() == pytest.approx(plain.item(), rel=1e-5)
        assert set(t.metrics) == {"task_loss"}
        # every parameter takes part, as DistributedDataParallel expects, and none moves
        assert len(kit.gradients(t)) == 4
        assert not any(g.any() for g in kit.gradients(t).values())
    t(**shown)["loss"].backward()
    assert any(g.any() for g in kit.gradients(t).values())


def test_the_same_batch_twice_has_a_fresh_decision() -> None:
    batch, t = tiny.batch(kit.rows("llava")), kit.trainable()
    first, second = t(**batch)["loss"], t(**batch)["loss"]
    assert first.item() == second.item()
    (first + second).backward()


def test_without_labels() -> None:
    batch = tiny.batch(kit.rows("llava"))
    del batch["labels"]
    t = kit.trainable()
    assert set(t(**batch)) == {"logits"}
    assert set(t(**batch, num_items_in_batch=3)) == {"logits"}
    assert not t.metrics
    with torch.no_grad():
        assert t.eval()(**batch)["logits"].shape[:2] == batch["input_ids"].shape


def test_rows_without_label_tokens_count_for_nothing() -> None:
    rows, t = kit.rows("llava"), kit.trainable()
    alone = t(**tiny.batch(rows[:2]))["loss"].item()
    rows[3]["labels"].fill_(-100)
    assert t(**tiny.batch([*rows[:2], rows[3]]))["loss"].item() == pytest.approx(alone, rel=1e-5)
    none = t(**tiny.batch(rows[3:]))["loss"]
    none.backward()
    assert none.item() == 0
    assert not any(g.any() for g in kit.gradients(t).values())


@pytest.mark.parametrize("gate", GATES)
def test_keep_everything(gate: str) -> None:
    """A soft mask of ones: the unattached loss, and no gradient."""
    batch = tiny.batch(kit.rows("llava"))
    t = kit.trainable(keep=1.0, gate=gate)
    out = t(**batch)
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(tiny.llava()(**batch).loss.item(), rel=1e-5)
    assert t.metrics["soft_hard_bce"] == 0
    assert not any(g.any() for g in kit.gradients(t).values())


def test_scope_sample_is_one_decision_per_sample() -> None:
    batch = tiny.batch(kit.rows("llava"))
    t = kit.trainable(scope="sample")
    t(**batch)["loss"].backward()
    assert t.handle.decision is not None
    assert t.handle.decision.rows.tolist() == [0, 1, 3]
    assert t.metrics["soft_hard_bce"] > 0


def test_an_unsupported_attention_is_refused() -> None:
    t = kit.trainable(gate="attention")
    t.model.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(TokenOpsError, match="sdpa or eager"):
        t(**tiny.batch(kit.rows("llava")))


def test_eager_and_sdpa_agree() -> None:
    batch, found = tiny.batch(kit.rows("llava")), []
    for backend in ("sdpa", "eager"):
        t = Trainable(tiny.llava(attn_implementation=backend), kit.pipeline()).train()
        t(**batch)["loss"].backward()
        found.append(kit.gradients(t))
    kit.assert_near(found[0], found[1], rtol=1e-3)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_saturated_masks_stay_finite(family: str, gate: str) -> None:
    """Scores of thousands: masks of exact zeros and ones, as long training at a high rate makes them."""
    t = kit.trainable(family, gate=gate)
    with torch.no_grad():
        for parameter in t.parameters():
            parameter.mul_(100.0)
    loss = t(**tiny.batch(kit.rows(family)))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in kit.gradients(t).values())
    assert t.metrics["soft_hard_gap"] < 1e-3


def test_no_cache_is_built() -> None:
    t, seen = kit.trainable(), []
    language_model = t.model.model.language_model
    language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True
    )
    t(**tiny.batch(kit.rows("llava")))
    assert seen == [False]
