"""Files that are whole but make no sense are refused before anything is allocated or changed."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.errors import TokenOpsWarning
from tokenops.integrations.checkpoints import CONFIG, WEIGHTS, load, save
from tokenops.integrations.describe import describe
from tokenops.registry import register, unregister
from tokenops.selectors import Random, TopK
from tokenops.selectors.relaxations import hard_topk, soft_topk
from tokenops.selectors.scorers import LearnedScorer, feature_norm

SCORER = "after_projector.selector.scorer"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A saved pipeline of this library's components."""
    torch.manual_seed(0)
    save(Pipeline(after_projector=Prune(TopK(LearnedScorer(6, 4), 0.2, soft_topk))), tmp_path / "ours")
    return tmp_path / "ours"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the arguments of Prune."""
    config = json.loads((folder / CONFIG).read_text())
    change(config["pipeline"]["arguments"]["stages"]["dict"]["after_projector"]["arguments"])
    (folder / CONFIG).write_text(json.dumps(config))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors and give the file its checksum."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    config["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config))


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters may only be made on the meta device."""
    made = nn.Parameter.__new__

    def watched(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        assert data is None or data.is_meta, "allocated"
        return made(cls, data, requires_grad)

    monkeypatch.setattr(nn.Parameter, "__new__", watched)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating(ours: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    rewrite(ours, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    no_memory(monkeypatch)
    with pytest.raises(TokenOpsError, match=rf"load: {SCORER}.\w+.\w+ as floating, got {dtype}"):
        load(ours)


def test_counts_that_are_floating(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({f"{SCORER}.steps": torch.tensor(0.5)}))
    with pytest.raises(TokenOpsError, match=rf"load: {SCORER}.steps as torch.int64, got torch.float32"):
        load(folder)


def test_save_refuses_the_dtypes_that_load_does(
    parts: SimpleNamespace, pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.get_submodule(SCORER).steps = torch.zeros((), dtype=torch.int32)
    with pytest.raises(TokenOpsError, match=r"rebuild every tensor .*scorer.steps"):
        save(pipeline, tmp_path / "new")


@pytest.mark.parametrize("size", [40, 10**6])
def test_sizes_the_file_does_not_hold(ours: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    edit(ours, lambda a: a["selector"]["arguments"]["scorer"]["arguments"].update(dim=size, hidden=size))
    no_memory(monkeypatch)
    with pytest.raises(TokenOpsError, match=rf"load: {SCORER}.q_proj.weight of shape"):
        load(ours)


def test_the_checksum_comes_before_memory(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({k: v + 1 for k, v in load_file(ours / WEIGHTS).items()}, ours / WEIGHTS)
    no_memory(monkeypatch)
    with pytest.raises(TokenOpsError, match="that config.json was saved with"):
        load(ours)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "dicts"])
def test_text_without_end(ours: Path, text: str) -> None:
    (ours / CONFIG).write_text(text)
    with pytest.raises(TokenOpsError, match="load: JSON in .*recursion"):
        load(ours)


@pytest.mark.parametrize("depth", [150, 900])
def test_deep_lists(ours: Path, depth: int) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    edit(ours, lambda a: a["selector"]["arguments"].update(keep=nested))
    with pytest.raises(TokenOpsError, match="load: lists and components nested less than 100 deep"):
        load(ours)


@pytest.mark.parametrize("depth", [150, 3000, None])
def test_deep_values_are_not_saved(parts: SimpleNamespace, tmp_path: Path, depth: int | None) -> None:
    nested: list[Any] = []
    if depth is None:
        nested.append(nested)
    for _ in range(depth or 0):
        nested = [nested]
    selector = parts.Best(parts.Score(2, nested=nested), 1)
    with pytest.raises(TokenOpsError, match="describe: lists and components nested less than 100 deep"):
        save(Pipeline(after_projector=Prune(selector)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


SOFT, NORM = {"component": "relaxation/soft_topk"}, {"component": "scorer/feature_norm"}
MISPLACED: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    (
        "a class",
        lambda a: a.update(selector={"component": "selector/TopK"}),
        r'load: "arguments" of the class selector/TopK at pipeline.*selector, got none',
    ),
    (
        "arguments that are no dict",
        lambda a: a.update(selector={"component": "selector/TopK", "arguments": []}),
        r"a component, tuple or dict at",
    ),
    (
        "a relaxation that selects",
        lambda a: a.update(selector=SOFT),
        r"stage/Prune: a selector as selector, got soft_topk \(relaxation\)",
    ),
    (
        "a bound one",
        lambda a: a.update(selector=SOFT | {"arguments": {}}),
        r"a selector as selector, got soft_topk \(relaxation\)",
    ),
    (
        "a scorer that selects",
        lambda a: a.update(selector=a["selector"]["arguments"]["scorer"]),
        r"a selector as selector, got LearnedScorer \(scorer\)",
    ),
    (
        "a pipeline that selects",
        lambda a: a.update(selector={"component": "stage/Pipeline", "arguments": {"stages": {"dict": {}}}}),
        r"a selector as selector, got Pipeline \(none of the kinds\)",
    ),
    (
        "a maker of selectors",
        lambda a: a.update(selector={"component": "selector/Random", "arguments": {"keep": 0.5}}),
        r"a selector that takes \(x, \*, mask\) as selector, got Random",
    ),
    (
        "a relaxation that scores",
        lambda a: a["selector"]["arguments"].update(scorer=SOFT),
        r"selector/TopK: a scorer as scorer, got soft_topk \(relaxation\)",
    ),
    (
        "a scorer that relaxes",
        lambda a: a["selector"]["arguments"].update(relax=NORM),
        r"selector/TopK: a relaxation or sampler as relax, got feature_norm \(scorer\)",
    ),
    (
        "a knob it lacks",
        lambda a: a["selector"]["arguments"].update(relax=SOFT | {"arguments": {"colour": 1}}),
        r"relaxation/soft_topk: arguments it takes, got .*colour",
    ),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in MISPLACED], ids=[c[0] for c in MISPLACED])
def test_misplaced(ours: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(ours, change)
    with pytest.raises(TokenOpsError, match=message):
        load(ours)


@pytest.mark.parametrize("relax", [None, hard_topk, soft_topk, functools.partial(soft_topk)])
def test_what_fits_is_loaded(tmp_path: Path, relax: Any) -> None:
    pipeline = Pipeline(after_projector=Prune(TopK(feature_norm, 0.5, relax)))
    save(pipeline, tmp_path)
    assert describe(load(tmp_path)) == describe(pipeline)
    save(Pipeline(after_projector=Prune(Random(0.5))), tmp_path)
    assert repr(load(tmp_path)) == repr(Pipeline(after_projector=Prune(Random(0.5))))


def test_a_class_is_not_saved(parts: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TokenOpsError, match=r"Best: scorer .*got the class Score, no instance"):
        save(Pipeline(after_projector=Prune(parts.Best(parts.Score, 1))), tmp_path / "new")


def test_nan_warns(ours: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(ours)
    rewrite(ours, lambda t: t[f"{SCORER}.q_proj.bias"].fill_(torch.nan))
    with pytest.warns(TokenOpsWarning, match=f"load: NaN in {SCORER}.q_proj.bias of") as told:
        back = load(ours)
    assert len(told) == 1
    assert back.get_parameter(f"{SCORER}.q_proj.bias").isnan().all()


def test_constructors_that_compute(tmp_path: Path) -> None:
    """They cannot be built without memory, and load as before."""

    @register("selector", sample=lambda: None)
    class Counting(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size, self.weight = size, nn.Parameter(torch.ones(size))
            self.total = self.weight.sum().item()
            if size > 5:
                raise KeyError(size)

        forward = TopK.forward

    try:
        save(Pipeline(after_projector=Prune(Counting(3))), tmp_path)
        back = load(tmp_path).stages["after_projector"].selector
        assert (back.size, back.total) == (3, 3.0)
        for size, message in ((4, r"weight of shape \(4,\), got \(3,\)"), (9, "arguments its constructor")):
            edit(tmp_path, lambda a, size=size: a["selector"]["arguments"].update(size=size))
            with pytest.raises(TokenOpsError, match=message):
                load(tmp_path)
    finally:
        unregister("selector", "Counting")
