"""An attached model is saved as the plain one or not at all: pickles would lose the wrappers silently."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny, vit

import tokenops
from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.integrations import attached
from tokenops.routers import Route, from_layer
from tokenops.selectors import TopK, UniformGrid
from tokenops.selectors.scorers import LearnedScorer, cls_attention, feature_norm, last_attention

LOOKING = Pipeline(
    after_projector=Prune(TopK(cls_attention, 0.5)), layers=Route(last_attention, from_layer(1, 0.5))
)
ROUTED = Pipeline(layers=Route(feature_norm, 0.5))
MODELS: dict[str, tuple[Callable[[], Any], Pipeline]] = {
    "llava": (lambda: ref.model("llava"), ref.prune(0.3)),
    "llava, probe and lens": (lambda: ref.model("llava"), LOOKING),
    "qwen": (lambda: ref.model("qwen2_5_vl"), ROUTED),
    "timm": (vit.model, Pipeline(after_projector=Prune(UniformGrid(0.25)))),
    "timm, routed": (vit.model, Pipeline(layers=Route(cls_attention, from_layer(1, 0.5)))),
}
models = pytest.mark.parametrize("name", MODELS)


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        if hasattr(model, "patch_embed"):
            return model(vit.pictures(model))
        family = "qwen2_5_vl" if hasattr(model.model, "visual") else "llava"
        return model(**tiny.batch(ref.prompts(family))).logits


def by_torch_save(model: Any) -> None:
    torch.save(model, io.BytesIO())


@models
def test_pickles_are_refused_and_leave_it_attached(name: str) -> None:
    make, pipeline = MODELS[name]
    model = make()
    plain = run(make())  # LLaVA of transformers cannot be pickled once it has run
    handle = tokenops.attach(model, pipeline)
    for write in (pickle.dumps, by_torch_save, ForkingPickler.dumps):
        for what in (model, handle):
            with pytest.raises(TokenOpsError, match="attach: a detached model to pickle"):
                write(what)
    assert handle.attached
    assert not torch.equal(run(copy.deepcopy(model)), plain)
    handle.remove()
    loaded = pickle.loads(pickle.dumps(model))
    assert attached(loaded) is None
    assert torch.equal(run(loaded), plain)


@models
def test_no_part_that_is_looked_at_is_pickled(name: str) -> None:
    make, pipeline = MODELS[name]
    model = make()
    with tokenops.attach(model, pipeline):
        ours = [m for m in model.modules() if any(key.startswith("_tokenops") for key in vars(m))]
        for module in ours:
            with pytest.raises(TokenOpsError, match="a detached model to pickle"):
                pickle.dumps(module)
    assert len(ours) > 1


@models
def test_deep_copies_and_weights_are_not_refused(name: str) -> None:
    make, pipeline = MODELS[name]
    model = make()
    plain, weights, file = run(make()), model.state_dict(), io.BytesIO()
    with tokenops.attach(model, pipeline):
        twin = copy.deepcopy(model)
        torch.save(model.state_dict(), file)
        want = run(model)
        after_a_call = copy.deepcopy(model)
    again = attached(after_a_call)
    assert again is not None
    assert again.trace == ()
    assert torch.equal(run(after_a_call), want)
    own = attached(twin)
    assert own is not None
    assert torch.equal(run(copy.deepcopy(twin)), want)
    with pytest.raises(TokenOpsError, match="a detached model to pickle"):
        pickle.dumps(twin)
    own.remove()
    assert torch.equal(run(pickle.loads(pickle.dumps(twin))), plain)
    file.seek(0)
    loaded = torch.load(file)
    assert list(loaded) == list(weights)
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


@pytest.mark.parametrize("name", ["llava", "llava, probe and lens", "qwen"])
def test_save_pretrained_saves_the_plain_model(name: str, tmp_path: Path) -> None:
    make, pipeline = MODELS[name]
    model = make()
    plain = run(model)
    model.save_pretrained(tmp_path / "plain")
    with tokenops.attach(model, pipeline):
        want = run(model)
        model.save_pretrained(tmp_path / "attached")
        assert torch.equal(run(model), want)
    files = sorted(p.name for p in (tmp_path / "plain").iterdir())
    assert sorted(p.name for p in (tmp_path / "attached").iterdir()) == files
    for file in files:
        assert (tmp_path / "attached" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), file
    loaded = type(model).from_pretrained(tmp_path / "attached", attn_implementation="sdpa").eval()
    assert attached(loaded) is None
    assert torch.equal(run(loaded), plain)


def test_the_pipeline_is_pickled_without_the_model() -> None:
    model = ref.model("llava")
    pipeline = Pipeline(after_projector=Prune(TopK(LearnedScorer(48), 0.5)))
    with tokenops.attach(model, pipeline):
        want = run(model)
        loaded = pickle.loads(pickle.dumps(pipeline))
    with tokenops.attach(model, loaded):
        assert torch.equal(run(model), want)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_tracing_names_what_works_instead() -> None:
    model = vit.model()
    with (
        tokenops.attach(model, ROUTED),
        pytest.raises(TokenOpsError, match=r"torch\.export or torch\.compile"),
    ):
        torch.jit.trace(model, vit.pictures(model))
