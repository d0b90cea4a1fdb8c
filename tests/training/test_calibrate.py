"""Calibration: the right teacher, a better fit, the same result every time and after an interruption."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import tiny
from integrations.reference import FAMILIES, model, units

import tokenops
from tokenops import TokenOpsError, recipes
from tokenops.integrations import low_rank_factors
from tokenops.routers import allocate
from tokenops.training import calibrate
from tokenops.training.layer_stream import advance, streams, teacher


def items(family: str, number: int = 6) -> list[dict[str, Any]]:
    one = [tiny.sample(family, [i % 2], i) for i in range(number)]
    return [*one[:-2], tiny.batch(one[-2:], "left")]


def states(factors: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in factors.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_hidden_states_are_the_models(family: str) -> None:
    m = model(family, "eager")
    inputs = tiny.batch([tiny.sample(family, [0], 1), tiny.sample(family, [1, 0], 2)], "left")
    with torch.no_grad():
        out = m(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    (stream,) = streams(m, [inputs])
    real = inputs["attention_mask"].bool()
    visual = torch.zeros_like(real)
    newline = getattr(m.model, "image_newline", None)
    for row, at in units(inputs["input_ids"]):
        embeds = out.hidden_states[0]
        visual[row, [i for i in at if newline is None or not torch.equal(embeds[row, i], newline)]] = True
    assert torch.equal(stream.visual, visual)
    for number, layer in enumerate(m.model.language_model.layers):
        torch.testing.assert_close(stream.hidden[real], out.hidden_states[number][real], atol=1e-4, rtol=1e-4)
        _, scores = teacher(layer, stream, causal=True)
        attention = out.attentions[number].mean(1)
        for row in range(2):
            v, t = visual[row] & real[row], ~visual[row] & real[row]
            wanted = attention[row][v].mean(0) * attention[row][t].mean(0)
            torch.testing.assert_close(scores[row][v], wanted[v], atol=1e-6, rtol=1e-3)
            assert not scores[row][~v].any()
        advance(layer, stream)


@pytest.mark.parametrize("loss", ["mse", "listwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_fits_and_routes(family: str, loss: str) -> None:
    m = model(family)
    before, factors = copy.deepcopy(m.state_dict()), low_rank_factors(m, 4)
    same = items(family)[-1:] * 6  # random weights do not generalise
    report = calibrate(m, factors, same, epochs=6, lr=1e-2, loss=loss, keep=0.25, progress=False)
    assert [r.layer for r in report.layers] == [0, 1, 2]
    if loss == "mse":
        assert all(r.after.mse <= r.before.mse for r in report.layers)
        assert sum(r.after.mse for r in report.layers) < 0.6 * sum(r.before.mse for r in report.layers)
    else:
        assert sum(r.after.spearman - r.before.spearman for r in report.layers) > 0.1
    assert "spearman" in str(report)
    assert not m.training
    assert tokenops.integrations.attached(m) is None
    for name, value in m.state_dict().items():
        assert torch.equal(value, before[name])
    schedule = allocate(report.mass, 0.3)
    with tokenops.attach(m, recipes.alvts(factors, schedule)), torch.no_grad():
        assert m(**items(family)[-1]).logits.isfinite().all()


def test_seeds_repeat_and_folders_resume(tmp_path: Path) -> None:
    m = model("llava")
    options: dict[str, Any] = {"epochs": 2, "progress": False}
    made = []
    for _ in range(2):
        factors = low_rank_factors(m, 4)
        report = calibrate(m, factors, items("llava"), **options)
        made.append((states(factors), report))
    assert made[0][1] == made[1][1]
    assert all(torch.equal(v, made[1][0][n]) for n, v in made[0][0].items())

    interrupted = low_rank_factors(m, 4)
    calibrate(m, interrupted, items("llava"), folder=tmp_path, **options)
    (tmp_path / "layer-002.json").unlink()  # as if it stopped inside the last layer
    resumed = low_rank_factors(m, 4)
    report = calibrate(m, resumed, items("llava"), folder=tmp_path, **options)
    assert report == made[0][1]
    assert all(torch.equal(v, made[0][0][n]) for n, v in states(resumed).items())
    with pytest.raises(TokenOpsError, match="other seed"):
        calibrate(m, low_rank_factors(m, 4), items("llava"), folder=tmp_path, seed=1, **options)
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 0


def test_batches_and_other_orders_of_training_mode_survive() -> None:
    m = model("llava").train()
    m.requires_grad_(False)
    calibrate(m, low_rank_factors(m, 4), items("llava"), epochs=1, progress=False)
    assert m.training


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"samples": 1}, "samples"),
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr"),
        ({"loss": "huber"}, "loss"),
        ({"keep": 0.0}, "keep"),
        ({"patience": True}, "patience"),
        ({"seed": -1}, "seed"),
        ({"data": []}, "at least two items"),
        ({"data": [tiny.sample("llava", [], 1)] * 2}, "visual tokens in every item"),
        ({"data": ["a picture"]}, "input_ids"),
        ({"factors": {}}, "factors of width"),
        ({"factors": {"7": None}}, "of 3 layers"),
        ({"factors": None}, "factors as"),
        ({"data": None}, "an iterable"),
    ],
)
def test_refusals(changes: dict[str, Any], told: str) -> None:
    m = model("llava")
    factors = low_rank_factors(m, 4)
    before = states(factors)
    given: dict[str, Any] = {"factors": factors, "data": items("llava"), "progress": False} | changes
    with pytest.raises(TokenOpsError, match=told):
        calibrate(m, **given)
    assert all(torch.equal(value, before[name]) for name, value in states(factors).items())
    assert tokenops.integrations.attached(m) is None
    assert not any(layer._forward_pre_hooks for layer in m.model.language_model.layers)


def test_frozen_and_shared_factors_are_refused() -> None:
    m = model("llava")
    factors = low_rank_factors(m, 4)
    with pytest.raises(TokenOpsError, match="of its own for each layer"):
        calibrate(m, {"0": factors["0"], "1": factors["0"]}, items("llava"), progress=False)
    with pytest.raises(TokenOpsError, match="require gradients"):
        calibrate(m, factors.requires_grad_(False), items("llava"), progress=False)


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    m, options = model("llava"), {"epochs": 1, "progress": False, "folder": tmp_path}
    calibrate(m, low_rank_factors(m, 4), items("llava"), **options)
    for factors in (low_rank_factors(m, 4, causal=True), low_rank_factors(m, 6)):
        before = states(factors)
        with pytest.raises(TokenOpsError, match="other factors"):
            calibrate(m, factors, items("llava"), **options)
        assert all(torch.equal(value, before[name]) for name, value in states(factors).items())
    with pytest.raises(TokenOpsError, match="other model_and_data"):
        calibrate(m, low_rank_factors(m, 4), items("llava")[1:], **options)


def test_a_refused_call_leaves_no_folder(tmp_path: Path) -> None:
    m = model("llava")
    with pytest.raises(TokenOpsError, match="at least two items"):
        calibrate(m, low_rank_factors(m, 4), items("llava")[:1], folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_an_interrupt_leaves_whole_factors_and_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("llava").train()
    m.model.vision_tower.eval()
    factors, calls = low_rank_factors(m, 4), []
    before = states(factors)
    step = torch.optim.Adam.step

    def interrupted(self: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(m, factors, items("llava"), epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in states(factors).items())
    assert m.training
    assert not m.model.vision_tower.training
