"""What cannot be saved is refused by name, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.integrations.checkpoints import CONFIG, WEIGHTS, load, save

PROJ = "after_projector.selector.scorer.proj"


def around(selector: Any) -> Pipeline:
    return Pipeline(after_projector=Prune(selector))


UNWRITABLE: list[tuple[str, Callable[[SimpleNamespace], Any], str]] = [
    ("a lambda", lambda p: p.Best(p.Score(2), 1, lambda s, k: s), r"Best: relax .*<lambda>"),
    ("a tensor", lambda p: p.Best(p.Score(2, None, torch.ones(1)), 1), r"Score: bounds .*Tensor"),
    ("not finite", lambda p: p.Best(p.Score(2), float("nan")), r"Best: keep .*got nan"),
    ("an object in a list", lambda p: p.Best(p.Score(2, names=[object()]), 1), r"Score: extra .*object"),
    ("keys that are no strings", lambda p: p.Best(p.Score(2, table={1: 2}), 1), r"Score: extra .*dict"),
    ("an unregistered module", lambda p: p.Best(nn.Linear(2, 1), 1), r"Best: scorer .*Linear .*@register"),
    ("an unregistered subclass", lambda p: type("Sub", (p.Score,), {})(2), r"Prune: selector .*Sub"),
    ("no attribute", lambda p: p.Forgetful(3), r"Forgetful: .*argument width, got none"),
    ("another value", lambda p: p.Shifting(3), r"save: attributes that keep the constructor arguments"),
]


@pytest.mark.parametrize(("make", "message"), [c[1:] for c in UNWRITABLE], ids=[c[0] for c in UNWRITABLE])
def test_unwritable(parts: SimpleNamespace, tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(TokenOpsError, match=message):
        save(around(make(parts)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tensors_the_arguments_do_not_rebuild(parts: SimpleNamespace, tmp_path: Path) -> None:
    grown, tied, extra = parts.Score(3), parts.Best(parts.Score(3), 1, None, [parts.Score(3)]), parts.Score(3)
    grown.proj = nn.Linear(3, 7)
    tied.others[0].proj.weight = tied.scorer.proj.weight
    extra.register_state_dict_post_hook(
        lambda m, state, prefix, _: state.update({f"{prefix}_extra_state": 1})
    )
    meta = parts.Score(3).to("meta")
    for selector, message in (
        (grown, "rebuild every tensor .*proj.bias"),
        (tied, "rebuild every tensor .*others.0.proj.weight"),
        (extra, "_extra_state as a tensor, got int"),
        (meta, "as a dense tensor with data, got torch.strided, meta"),
    ):
        with pytest.raises(TokenOpsError, match=message):
            save(around(parts.Best(selector, 1)), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_only_pipelines_into_folders(pipeline: Pipeline, parts: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TokenOpsError, match="save: a Pipeline, got Score"):
        save(parts.Score(2), tmp_path)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TokenOpsError, match="save: a folder, got the file"):
        save(pipeline, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_places_that_cannot_be_written(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for place in (tmp_path / "file" / "new", tmp_path / "link", "/proc/none/new", "a\0b"):
        with pytest.raises(TokenOpsError, match="save: a folder that can be made, got"):
            save(pipeline, place)
    assert (tmp_path / "file").read_text() == "mine"

    def refuse(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TokenOpsError, match=r"save: a folder that can be written, got .*Permission"):
        save(pipeline, tmp_path / "locked")


@pytest.mark.parametrize("broken", [WEIGHTS, CONFIG])
def test_a_write_that_fails_leaves_the_old_file(
    folder: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == broken:
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with torch.no_grad():
        pipeline.get_parameter(f"{PROJ}.bias").fill_(9)
    with pytest.raises(OSError, match="disk full"):
        save(pipeline, folder)
    assert {path.name for path in folder.iterdir()} == set(before)
    assert (folder / broken).read_bytes() == before[broken]
    if broken == CONFIG:  # new weights beside the old config are told apart, not loaded
        with pytest.raises(TokenOpsError, match=r"the model.safetensors that config.json was saved with"):
            load(folder)
    else:
        assert not load(folder).get_parameter(f"{PROJ}.bias").eq(9).any()
