"""What is saved comes back: tree, tensors, dtypes, sharing."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tokenops
from tokenops import Pipeline, Prune
from tokenops.integrations.checkpoints import CONFIG, WEIGHTS, load, save
from tokenops.integrations.describe import components, describe
from tokenops.registry import Entry, registered, unregister

for package in pkgutil.walk_packages(tokenops.__path__, "tokenops."):
    if package.name.split(".")[1] in ("selectors", "routers", "recipes"):
        importlib.import_module(package.name)
OURS = [e for e in registered() if e.component.__module__.startswith("tokenops.")]


def again(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Save and load; the checks every round trip must pass."""
    save(pipeline, folder)
    back = load(folder)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert describe(back) == describe(pipeline)
    assert repr(back) == repr(pipeline)
    want, got = pipeline.state_dict(), back.state_dict()
    assert list(got) == list(want)
    assert all(got[k].dtype == want[k].dtype and torch.equal(got[k], want[k]) for k in want)
    assert not any(module.training for module in back.modules())
    return back


@pytest.mark.parametrize(
    "entry", [e for e in OURS if e.kind in ("recipe", "selector")], ids=lambda e: f"{e.kind}-{e.name}"
)
def test_every_recipe_and_selector(entry: Entry, tmp_path: Path) -> None:
    made = entry.make()
    again(made if isinstance(made, Pipeline) else Pipeline(after_projector=Prune(made)), tmp_path)


@pytest.mark.parametrize("entry", [e for e in OURS if e.kind == "scorer"], ids=lambda e: e.name)
def test_every_scorer(entry: Entry, parts: SimpleNamespace, tmp_path: Path) -> None:
    again(Pipeline(after_projector=Prune(parts.Best(entry.make(), 0.5))), tmp_path)


@pytest.mark.parametrize("entry", [e for e in OURS if e.kind == "relaxation"], ids=lambda e: e.name)
def test_every_relaxation(entry: Entry, parts: SimpleNamespace, tmp_path: Path) -> None:
    made = entry.make()
    back = again(Pipeline(after_projector=Prune(parts.Best(parts.Score(4), 0.5, made))), tmp_path)
    if not isinstance(made, nn.Module):
        assert back.stages["after_projector"].selector.relax is made


def test_a_new_process_knows_our_components() -> None:
    """Those that register on an import that loading does not make would be unknown to it."""
    code = "from tokenops.integrations.describe import components\nprint(*components())"
    environment = os.environ | {"PYTHONPATH": str(Path(tokenops.__file__).parents[1])}
    known = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()
    kinds = {"scorer", "relaxation", "selector", "merger", "router"}
    wanted = {name for name in components() if name.partition("/")[0] in kinds}
    assert wanted <= set(known)


def test_components_of_another_package(pipeline: Pipeline, parts: SimpleNamespace, tmp_path: Path) -> None:
    back = again(pipeline, tmp_path)
    selector = back.stages["after_projector"].selector
    assert type(selector) is parts.Best
    assert type(selector.scorer) is parts.Score
    assert selector.relax is parts.soften
    x = torch.randn(2, 5, 6)
    assert torch.equal(selector(x), pipeline.stages["after_projector"].selector(x))
    named = json.loads((tmp_path / CONFIG).read_text())["pipeline"]["arguments"]["stages"]["dict"]
    assert named["after_projector"]["arguments"]["selector"]["component"] == f"{parts.Best.__module__}:Best"
    assert named["after_projector"]["component"] == "stage/Prune"


def test_values_of_every_kind(parts: SimpleNamespace, tmp_path: Path) -> None:
    extra = {"names": ["a", None], "table": {"component": 1, "é": (True, 2.5)}, "big": 2**70}
    scorer = parts.Score(3, None, 0.1, -2.0, **extra)
    back = again(Pipeline(after_projector=Prune(parts.Best(scorer, 7), scope="sample")), tmp_path)
    stage = back.stages["after_projector"]
    assert (stage.scope, stage.selector.keep, type(stage.selector.keep)) == ("sample", 7, int)
    found = stage.selector.scorer
    assert (found.hidden, found.bounds, found.extra) == (None, (0.1, -2.0), extra)


def test_functions_with_knobs_and_selectors_that_are_no_modules(
    parts: SimpleNamespace, tmp_path: Path
) -> None:
    relax = functools.partial(parts.soften, tau=0.5)
    back = again(Pipeline(after_projector=Prune(parts.Best(parts.Score(2), 0.5, relax))), tmp_path / "a")
    found = back.stages["after_projector"].selector.relax
    assert (found.func, found.keywords) == (parts.soften, {"tau": 0.5})
    save(Pipeline(after_projector=Prune(parts.Plain(0.25))), tmp_path / "b")
    plain = load(tmp_path / "b").stages["after_projector"].selector
    assert type(plain) is parts.Plain
    assert plain.keep == 0.25


def test_a_shared_module_stays_shared(parts: SimpleNamespace, tmp_path: Path) -> None:
    scorer = parts.Score(3)
    inner = parts.Best(scorer, 2)
    back = again(Pipeline(after_projector=Prune(parts.Best(scorer, 0.5, None, [inner, inner]))), tmp_path)
    selector = back.stages["after_projector"].selector
    assert selector.others[0] is selector.others[1]
    assert selector.others[0].scorer is selector.scorer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept(pipeline: Pipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    pipeline.to(dtype).get_submodule("after_projector.selector.scorer").steps += 5
    back = again(pipeline.train(), tmp_path)
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert all(p.requires_grad for p in back.parameters())


def test_loading_leaves_random_state_and_defaults_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    before, rng = torch.get_rng_state(), random.getstate()
    with torch.device("meta"):
        save(pipeline, tmp_path)
        back = load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert rng == random.getstate()
    assert {p.device.type for p in back.parameters()} == {"cpu"}


def test_tensors_do_not_hang_on_the_file(pipeline: Pipeline, tmp_path: Path) -> None:
    save(pipeline, tmp_path)
    back, want = load(tmp_path), {k: v.clone() for k, v in pipeline.state_dict().items()}
    (tmp_path / WEIGHTS).write_bytes(b"\0" * (tmp_path / WEIGHTS).stat().st_size)
    assert all(torch.equal(v, want[k]) for k, v in back.state_dict().items())


def test_the_same_pipeline_gives_the_same_bytes(pipeline: Pipeline, tmp_path: Path) -> None:
    save(pipeline, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_overwriting_touches_two_files_only(pipeline: Pipeline, tmp_path: Path) -> None:
    save(pipeline, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with torch.no_grad():
        pipeline.get_parameter("after_projector.selector.scorer.proj.bias").fill_(9)
    save(pipeline, tmp_path)
    assert load(tmp_path).get_parameter("after_projector.selector.scorer.proj.bias").eq(9).all()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_from_the_hub(pipeline: Pipeline, tmp_path: Path, hub: Callable[..., list[Any]]) -> None:
    save(pipeline, tmp_path)
    asked = hub(tmp_path)
    assert describe(load("someone/scorer", revision="v1")) == describe(pipeline)
    assert asked == [("someone/scorer", "v1", (CONFIG, WEIGHTS))]


def test_a_new_process_imports_the_package_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user does: a package of their own, saved in one process and loaded in another."""
    (tmp_path / "mine.py").write_text(
        "import torch, tokenops\n"
        "@tokenops.register('selector', sample=lambda: Mine(2))\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, keep):\n"
        "        super().__init__()\n"
        "        self.keep, self.weight = keep, torch.nn.Parameter(torch.arange(3.0))\n"
        "    def forward(self, x): return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    save(Pipeline(after_projector=Prune(mine.Mine(2))), tmp_path / "saved")
    unregister("selector", "Mine")
    code = """
from tokenops.integrations.checkpoints import load
try:
    load("saved")
except ValueError as error:
    print(error)
import mine
print(load("saved").state_dict())
"""
    path = os.pathsep.join([str(Path(tokenops.__file__).parents[1]), str(tmp_path)])
    environment = os.environ | {"PYTHONPATH": path}
    out = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert "load: import mine first: it defines mine:Mine, got no such component yet" in out
    assert "tensor([0., 1., 2.])" in out


@pytest.mark.parametrize(
    "entry", [e for e in OURS if e.kind in ("relaxation", "sampler")], ids=lambda e: e.name
)
def test_whatever_a_scorer_was_trained_with(entry: Entry, tmp_path: Path) -> None:
    from tokenops.recipes import visionselector
    from tokenops.selectors.scorers import LearnedScorer

    again(visionselector(LearnedScorer(8), keep=0.2, relax=entry.component), tmp_path)
