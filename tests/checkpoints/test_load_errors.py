"""What cannot be loaded is refused with the reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenops import Pipeline, TokenOpsError
from tokenops.integrations.checkpoints import CONFIG, VERSION, WEIGHTS, load, save

PROJ = "after_projector.selector.scorer.proj"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def selector_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["pipeline"]["arguments"]["stages"]["dict"]["after_projector"]["arguments"]["selector"]


def test_no_such_place(folder: Path, tmp_path: Path) -> None:
    for source in ("no/such/folder", str(tmp_path / "none"), tmp_path / "none", folder / CONFIG, "word"):
        with pytest.raises(TokenOpsError, match="load: an existing folder or a hub id"):
            load(source)
    with pytest.raises(TokenOpsError, match=r"revision only for a hub id, got 'v1'"):
        load(folder, revision="v1")


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        TokenOpsError, match=r"reached at revision main, got 'a/b' \(ConnectionError: no route"
    ):
        load("a/b")


@pytest.mark.parametrize("package", ["safetensors", "huggingface_hub"])
def test_a_missing_package_names_the_extra(
    folder: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TokenOpsError, match=rf"{package} installed \(pip install 'tokenops\[hf\]'\)"):
        load("a/b" if package == "huggingface_hub" else folder)
    if package == "safetensors":
        with pytest.raises(TokenOpsError, match=r"save: safetensors installed"):
            save(pipeline, folder)


CONFIGS: list[tuple[str, str | None, str]] = [
    ("none", None, "config.json in .*FileNotFoundError"),
    ("no JSON", "{", "JSON in .*config.json"),
    ("not text", "\udcff", "JSON in .*config.json"),
    ("a list", "[]", "of something else"),
    ("a model's", '{"model_type": "llava"}', '"format": "tokenops" in .*of something else'),
    ("no version", '{"format": "tokenops"}', "format_version 1 to"),
    ("no pipeline", '{"format": "tokenops", "format_version": 1}', "pipeline, weights_sha256 in"),
]


@pytest.mark.parametrize(("text", "message"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_wrong_config(folder: Path, text: str | None, message: str) -> None:
    (folder / CONFIG).unlink()
    if text is not None:
        (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenOpsError, match=message):
        load(folder)


def test_a_newer_format(folder: Path) -> None:
    edit(folder, lambda c: c.update(format_version=VERSION + 1, tokenops_version="9.1"))
    message = rf"format_version 1 to {VERSION} .*upgrade tokenops.*got {VERSION + 1}, written by tokenops 9.1"
    with pytest.raises(TokenOpsError, match=message):
        load(folder)


TREES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    (
        "unknown",
        lambda s: s.update(component="selector/Gone"),
        "of this version of tokenops, got 'selector/Gone'",
    ),
    (
        "foreign",
        lambda s: s.update(component="elsewhere:Thing"),
        "import elsewhere first: it defines elsewhere:Th",
    ),
    (
        "an import",
        lambda s: s.update(component="os:system", arguments={"command": "true"}),
        "import os first",
    ),
    (
        "argument",
        lambda s: s["arguments"].update(colour=1),
        "Best: arguments scorer, keep, relax, others, got col",
    ),
    ("no argument", lambda s: s["arguments"].pop("scorer"), "Best: arguments its constructor takes"),
    ("unfit value", lambda s: s["arguments"]["scorer"]["arguments"].update(dim="x"), "Score: arguments its"),
    (
        "a node",
        lambda s: s["arguments"].update(relax={"what": 1}),
        r"stages.after_projector.selector.relax, .*'what'",
    ),
    ("a later one", lambda s: s["arguments"].update(relax={"same": ".later"}), r"a component, tuple or dict"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in TREES], ids=[c[0] for c in TREES])
def test_wrong_tree(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(folder, lambda config: change(selector_of(config)))
    with pytest.raises(TokenOpsError, match=message):
        load(folder)


def test_something_else_than_a_pipeline(folder: Path) -> None:
    edit(folder, lambda config: config.update(pipeline=selector_of(config)))
    with pytest.raises(TokenOpsError, match=r"load: a Pipeline in .*got Best"):
        load(folder)


def test_unimported_after_saving(
    folder: Path, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenops import registry

    name = f"{parts.Score.__module__}:Score"
    kept = {k: e for k, e in registry._ENTRIES.items() if e.component is not parts.Score}
    monkeypatch.setattr(registry, "_ENTRIES", kept)
    with pytest.raises(TokenOpsError, match=f"import {parts.Score.__module__} first: it defines {name}"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PROJ}.bias"), f"every tensor of the pipeline .*no {PROJ}.bias"),
        (lambda t: t.update(stray=torch.ones(1)), "only tensors of the pipeline .*got stray"),
        (lambda t: t.update({f"{PROJ}.bias": torch.ones(9)}), rf"{PROJ}.bias of shape \(4,\), got \(9,\)"),
        (lambda t: t.update({f"{PROJ}.bias": torch.ones(4)}), "that config.json was saved with"),
    ],
    ids=["missing", "unexpected", "shape", "other values"],
)
def test_wrong_tensors(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(TokenOpsError, match=message):
        load(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, size: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(TokenOpsError, match=r"a whole model.safetensors in"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(TokenOpsError, match=r"load: model.safetensors in .*FileNotFoundError"):
        load(folder)
