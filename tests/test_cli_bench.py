"""``tokenops bench``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import source_imports as source

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")

import torch
from integrations import tiny

import tokenops
from tokenops import recipes
from tokenops.analysis.measure import measuring, run
from tokenops.cli import DONE, FAILED, INTERRUPTED, MISUSED, main

pytestmark = [pytest.mark.hf, pytest.mark.usefixtures("frozen_heap")]

QUICK = ["--runs", "1", "--warmup", "0", "--new-tokens", "2", "--text", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _same_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The roofline of this machine takes a second to measure; that of another will do."""
    monkeypatch.setattr(measuring, "device_name", lambda device: "h200")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--method",
        "--random-weights",
        "--pipeline",
        "--json",
        "llava-next-7b",
        "Example: tokenops bench",
    ):
        assert words in said
    assert "Exit codes: 0 done" in said


def test_the_pocket_model_by_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    methods = ["--method", "random", "--method", "fastv", "--keep", "0.25", "--keep", "36"]
    assert main(["bench", *QUICK, *methods, "--json", "--out", str(out)]) == DONE
    heard = capsys.readouterr()
    record = json.loads(heard.out)
    assert out.read_text() == heard.out
    assert [row["name"] for row in record["rows"]] == [
        "full",
        "random 0.25",
        "random 36",
        "fastv 0.25",
        "fastv 36",
    ]
    assert [row["tokens"] for row in record["rows"]] == [144, 36, 36, 90, 90]
    assert record["settings"]["text_tokens"] == 8
    assert "measuring random 0.25" in heard.err
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_random_weights(family: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny.MODELS[family]().config.to_json_string())
    size = {"qwen2_5_vl": ["--tokens", "12"], "llava_next": ["--image-size", "30x20"]}.get(family, [])
    options = ["--random-weights", str(tmp_path), *size, "--layers", "2", "--batch", "2", "--keep", "4"]
    assert main(["bench", *QUICK, *options]) == DONE
    heard = capsys.readouterr()
    head, *lines = heard.out.splitlines()
    assert "float32, 2 layers, batch 2:" in head
    assert "visual + 8 text tokens" in head
    assert [line.split()[:2] for line in lines if line.startswith(("full", "visionselector 4 "))][1] == [
        "visionselector",
        "4",
    ]
    assert "Estimated limit on h200" in heard.out
    assert "visionselector 4: too few runs to tell" in heard.out


def test_a_saved_pipeline(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokenops.save(recipes.uniform(12), tmp_path / "mine")
    assert main(["bench", *QUICK, "--pipeline", str(tmp_path / "mine"), "--json"]) == DONE
    record = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["tokens"]) for row in record["rows"]] == [("full", 144), ("mine", 12)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["somewhere", "--random-weights", "llava-1.5-7b"], "MODEL or --random-weights"),
        (["--tokens", "9", "--image-size", "9"], "--tokens or --image-size"),
        (["--dtype", "int8"], "--dtype among"),
        (["--device", "abacus"], "--device cpu, cuda"),
        (["--device", "cuda:99"], "--device among"),
        (["--random-weights", "llava-9"], "a name among"),
        (["--image-size", "0x3"], "WIDTHxHEIGHT in pixels, or one number for a square"),
        (["--image-size", "300x200"], "--image-size 96x96, the only one of this model"),
        (["--tokens", "145"], "a number that images of this model make (144)"),
        (["--method", "magic"], "a recipe among"),
        (["--keep", "1.5"], "keep must be a ratio"),
        (["--keep", "much"], "--keep as a ratio"),
        (["--method", "random", "--method", "random"], "every contender once"),
        (["--pipeline", "nowhere"], "nowhere"),
        (["--layers", "5"], "error: tokenops bench: layers: an int in [1, 4]"),
        (["--random-weights", "nothing"], "error: tokenops bench: random weights: a config.json"),
        (["--runs", "many"], "--runs"),
        (["nowhere/at/all"], "error: tokenops bench: model: nowhere/at/all as from_pretrained"),
    ],
)
def test_misuse(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [] if "--device" in arguments else ["--device", "cpu"]
    assert main(["bench", *given, *arguments, "--out", "result.json"]) == MISUSED
    heard = capsys.readouterr()
    assert words in " ".join(heard.err.split())
    assert "Traceback" not in heard.err
    assert not heard.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("--runs", "0"),
        ("--warmup", "-1"),
        ("--new-tokens", "0"),
        ("--threads", "0"),
        ("--text", "1"),
        ("--batch", "0"),
        ("--layers", "0"),
        ("--tokens", "0"),
        ("--image-size", "0"),
        ("--image-size", "9x"),
    ],
)
def test_numbers_are_refused_before_a_model_is_loaded(
    option: str,
    number: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tokenops.cli.bench_request.Asked.subject", loaded)
    assert main(["bench", option, number]) == MISUSED
    heard = capsys.readouterr()
    assert option in heard.err
    assert not heard.out


def test_the_size_that_a_model_has_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *QUICK, "--threads", "1", "--image-size", "96"]) == DONE
    assert ", 1 thread, torch" in capsys.readouterr().out


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", *QUICK, "--out", str(tmp_path)]) == MISUSED
    assert "--out as a file" in capsys.readouterr().err
    assert main(["bench", *QUICK, "--out", str(tmp_path / "file" / "result.json")]) == MISUSED
    assert "tokenops bench: a folder to write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            FAILED,
            "out of memory. Tried (fewer --layers",
        ),
    ],
)
def test_what_goes_wrong_while_measuring(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """In the middle of the last run: the file that was there stays whole."""

    def failing(*_: Any) -> float:
        raise error

    monkeypatch.setattr(run.Bench, "overhead", failing)
    out = tmp_path / "result.json"
    out.write_text("earlier")
    assert main(["bench", *QUICK, "--json", "--out", str(out)]) == code
    heard = capsys.readouterr()
    assert words in heard.err
    assert not heard.out
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_streams_of_a_process(tmp_path: Path) -> None:
    """Standard output is the JSON and nothing else, whatever libraries have to say."""
    command = [sys.executable, "-m", "tokenops", "bench", *QUICK, "--threads", "1", "--json"]
    environment = os.environ | {"PYTHONPATH": str(source.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == DONE, done.stderr
    record = json.loads(done.stdout)
    assert record["settings"]["timer"] == "processor"
    assert record["rows"][1]["limit"]["device"] == "cpu"
    assert done.stderr.splitlines() == ["preparing the model ...", "measuring visionselector 0.2 ..."]
    assert not list(tmp_path.iterdir())
