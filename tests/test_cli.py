"""The command line: help that teaches, exit codes, clear messages, Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import source_imports as source

pytest.importorskip("typer")
pytest.importorskip("rich")

from tokenops import __version__, list_recipes
from tokenops.cli import DONE, FAILED, INTERRUPTED, MISUSED, main, require
from tokenops.cli.components import components
from tokenops.errors import TokenOpsError
from tokenops.registry import registered

COMMAND = [sys.executable, "-m", "tokenops"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(source.ROOT), "PYTHONUNBUFFERED": "1"}


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["list", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == DONE
    said = capsys.readouterr().out
    assert "Usage: tokenops" in said
    if arguments[0] == "demo":
        for word in ("--out", "--questions", "--seed", "--json", "pocket model", "Exit codes", "Example"):
            assert word in said
    if arguments == ["--help"]:
        assert all(word in said for word in ("demo", "list", "Start with: tokenops demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out.strip() == f"tokenops {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["demo", "--questions", "many"],
        ["demo", "--questions", "0"],
        ["demo", "--seed", "-1"],
    ],
)
def test_misuse(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == MISUSED
    heard = capsys.readouterr()
    assert "Traceback" not in heard.err + heard.out
    assert not arguments or arguments[-1].strip("-") in heard.err or "--questions" in heard.err
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["demo", "--out", str(file)]) == MISUSED
    assert "a folder to write to" in capsys.readouterr().err


@pytest.mark.hf
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where permissions tell nothing")
def test_an_output_where_nothing_can_be_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")

    def started(*_: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("tokenops.demo.run.run", started)
    assert main(["demo", "--out", "/proc/x"]) == MISUSED
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err == "error: tokenops demo: a folder that may be written to, got /proc\n"


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == DONE
    said = capsys.readouterr().out
    for name in list_recipes():
        assert name in said
    assert "arXiv:2510.16598" in said
    assert "tokenops.selectors.scorers" in said


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == DONE
    listed = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in listed if c["kind"] == "recipe"} == set(list_recipes())
    ours = [e for e in registered() if e.component.__module__.startswith("tokenops.")]
    assert len(listed) == len(ours)
    for component in listed:
        assert set(component) == {"kind", "name", "module", "summary", "paper"}
        assert component["summary"]


def test_listed_names_import_from_where_it_says() -> None:
    for component in components():
        assert hasattr(importlib.import_module(component.module), component.name)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(["list"], "typer"), (["--help"], "rich"), (["demo"], "matplotlib"), (["demo"], "sklearn")],
)
def test_a_missing_extra_is_named(
    arguments: list[str],
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without(monkeypatch, missing)
    assert main(arguments) == MISUSED
    said = capsys.readouterr().err
    assert "pip install 'tokenops[demo]'" in said
    assert missing in said
    with pytest.raises(TokenOpsError, match=missing):
        require("somebody", [missing])


def test_a_missing_extra_in_a_fresh_process(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['typer'] = None; import tokenops.cli; sys.exit(tokenops.cli.main())"
    command = [sys.executable, "-c", hidden]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (MISUSED, "")
    assert done.stderr.startswith("error: tokenops: ")
    assert "tokenops[demo]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (OSError(28, "No space left on device"), FAILED, "No space left"),
        (TokenOpsError("somebody", "something", "nothing"), MISUSED, "somebody: something, got nothing"),
    ],
)
@pytest.mark.hf
def test_what_goes_wrong_inside(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")

    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr("tokenops.demo.run.run", failing)
    assert main(["demo", "--out", str(tmp_path / "out")]) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    command = [*COMMAND, "demo", "--out", "out", "--questions", "500"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("timing prefill"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.hf
@pytest.mark.slow
def test_demo_as_json_from_another_folder(tmp_path: Path) -> None:
    """Standard output is the JSON of the table and nothing else; the files go below the current folder."""
    pytest.importorskip("transformers")
    command = [*COMMAND, "demo", "--questions", "8", "--seed", "4", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == DONE, done.stderr
    table = json.loads(done.stdout)
    assert (table["seed"], len(table["rows"])) == (4, 24)
    folder = tmp_path / "tokenops-demo"
    assert {f.name for f in folder.iterdir()} == {
        "tokenops-demo.json",
        "tokenops-demo.png",
        "tokenops-demo-layers.png",
    }
    assert (folder / "tokenops-demo.json").read_text() == done.stdout
    assert "VisionSelector" in done.stderr


def test_the_command_is_installed() -> None:
    import tomllib

    project = tomllib.loads((source.ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"tokenops": "tokenops.cli:main"}
