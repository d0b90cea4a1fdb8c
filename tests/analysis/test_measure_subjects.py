"""Models, prompts and methods that ``tokenops bench`` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from integrations import tiny

import tokenops
from tokenops import TokenOpsError, list_recipes, pocket
from tokenops.analysis.measure.architectures import ARCHITECTURES, config_of
from tokenops.analysis.measure.methods import method
from tokenops.analysis.measure.prompts import default_size, prompt, size_for
from tokenops.analysis.measure.subjects import random_model, trained_model

pytestmark = pytest.mark.hf

families = pytest.mark.parametrize("family", list(tiny.MODELS))
CPU: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
PARAMETERS = {"llava-1.5-7b": 7_063_427_072, "llava-next-7b": 7_063_431_168, "qwen2.5-vl-7b": 8_292_166_656}
"""Of the published checkpoints."""
TOKENS = {"llava-1.5-7b": 576, "llava-next-7b": 2880, "qwen2.5-vl-7b": 1296}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architectures_are_those_of_the_checkpoints(name: str) -> None:
    model = random_model(name, dtype=torch.bfloat16, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    from tokenops.analysis.cost.architecture import architecture
    from tokenops.analysis.cost.images import images_of

    height, width = default_size(model)
    size = {"llava": 576, "llava_next": (height, width), "qwen2_5_vl": (1, height // 14, width // 14)}
    image = images_of(architecture(model), [size[model.config.model_type]])[0]  # type: ignore[union-attr]
    assert image.tokens == TOKENS[name]


@families
def test_random_weights_from_a_file(family: str, tmp_path: Path) -> None:
    config = tiny.MODELS[family]().config
    (tmp_path / "config.json").write_text(config.to_json_string())
    state = torch.get_rng_state()
    models = [random_model(tmp_path, **CPU), random_model(tmp_path / "config.json", layers=2, **CPU)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(m.model.language_model.layers) for m in models] == [3, 2]  # type: ignore[union-attr]
    first, again = models[0], random_model(tmp_path, **CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_bad_configs(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, expected in {
        "{": "JSON in",
        "[]": "with a model_type",
        '{"model_type": "nothing-like-it"}': "to be a config",
        '{"model_type": "llava", "image_seq_length": "many"}': "to be a config",
    }.items():
        file.write_text(text)
        with pytest.raises(TokenOpsError, match=expected):
            random_model(file, **CPU)
    with pytest.raises(TokenOpsError, match="a name among llava-1.5-7b"):
        config_of("llava-2")
    for layers in (0, 33, True):
        with pytest.raises(TokenOpsError, match="in \\[1, 32\\]"):
            config_of("llava-1.5-7b", layers)
    with pytest.raises(TokenOpsError, match="from_pretrained"):
        trained_model(tmp_path / "nowhere", **CPU)


@pytest.mark.slow
def test_a_config_of_no_image_text_model(tmp_path: Path) -> None:
    """Slow: what transformers says then names every model it has, and imports them all."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenOpsError, match="image-text model"):
        random_model(tmp_path, **CPU)


def test_a_trained_model_can_be_shortened() -> None:
    model, processor = trained_model(pocket.weights_dir(), layers=2, **CPU)
    assert len(model.model.language_model.layers) == 2  # type: ignore[union-attr]
    assert processor is not None
    whole, _ = pocket.load()
    kept = model.state_dict()
    assert all(torch.equal(kept[name], t) for name, t in whole.state_dict().items() if name in kept)


@families
def test_prompts_have_the_size_asked_for(family: str) -> None:
    model = tiny.MODELS[family]().train()
    n = {"llava": 16, "llava_next": 80, "qwen2_5_vl": 12}[family]
    size = size_for(model, n)
    inputs = prompt(model, size, text=9, batch=2)
    assert model.training
    ids = inputs["input_ids"]
    assert ids.shape[0] == 2
    assert ((ids != tiny.IMAGE).sum(1) == 9).all()
    special = {tiny.PAD, 1, 2} | ({tiny.VIDEO} if family == "qwen2_5_vl" else set())
    assert not set(ids.flatten().tolist()) & special
    with tokenops.attach(model.eval(), tokenops.recipes.random(1.0)) as handle, torch.no_grad():
        model.generate(**inputs, max_new_tokens=1)
    assert [t.n for t in handle.trace] == [n, n]
    again = prompt(model, size, text=9, batch=2)
    assert all(torch.equal(again[name], value) for name, value in inputs.items())


def test_prompts_through_a_processor() -> None:
    model, processor = trained_model(pocket.weights_dir(), **CPU)
    inputs = prompt(model, (50, 70), text=7, processor=processor)
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert inputs["input_ids"].shape == (1, 144 + 7)
    assert default_size(model) == (96, 96)


def test_prompts_refused() -> None:
    model = tiny.llava()
    with pytest.raises(TokenOpsError, match="make \\(16\\), got 17"):
        size_for(model, 17)
    with pytest.raises(TokenOpsError, match="make \\(32, 48, 80\\)|16"):
        size_for(tiny.llava_next(), 1000)
    for wrong in ({"text": 1}, {"text": 2.5}, {"batch": 0}):
        with pytest.raises(TokenOpsError, match="as an int"):
            prompt(model, (16, 16), **({"text": 8} | wrong))  # type: ignore[arg-type]
    with pytest.raises(TokenOpsError, match="as an int"):
        prompt(model, (0, 16), text=8)
    with pytest.raises(TokenOpsError, match="marks the image"):
        prompt(tiny.qwen(), (8, 8), text=3)


@families
@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_fits_every_family(family: str, name: str) -> None:
    model = tiny.MODELS[family]()
    inputs = tiny.sample(family, [0], seed=0)
    state = torch.get_rng_state()
    pipeline = method(model, name, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pipeline.training
    if family == "qwen2_5_vl" and name == "cls_attention":
        with pytest.raises(TokenOpsError, match=r"cls_attention|CLS"):
            tokenops.attach(model, pipeline)
        return
    with tokenops.attach(model, pipeline) as handle, torch.no_grad():
        model(**inputs)
        assert handle.tokens_per_layer[-1] < handle.trace[0].n


def test_methods_refused() -> None:
    model = tiny.llava()
    with pytest.raises(TokenOpsError, match="a recipe among"):
        method(model, "magic", 0.5)
    with pytest.raises(TokenOpsError, match="ratio from stage to stage"):
        method(model, "pyramiddrop", 8)
    with pytest.raises(TokenOpsError, match="keep must be"):
        method(model, "random", 0.0)


def test_built_in_configs_are_json() -> None:
    assert json.loads(json.dumps(ARCHITECTURES)) == ARCHITECTURES
