"""``tokenops calibrate`` and ``train``: what they write, how they go on, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import source_imports as source

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")

import torch
from integrations import tiny
from training import words

import tokenops
from tokenops import TokenOpsError, pocket
from tokenops.cli import DONE, INTERRUPTED, MISUSED, main
from tokenops.cli.records import Examples, Record, read_records
from tokenops.integrations import attached
from tokenops.routers import Route
from tokenops.training import Trainable, calibration

pytestmark = pytest.mark.hf
QUICK = ["--samples", "4", "--epochs", "1", "--rank", "2", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """JSON lines with images beside them, in a folder with a space in its name."""
    from PIL import Image

    folder = tmp_path / "my data"
    folder.mkdir()
    lines = []
    for i in range(5):
        Image.new("RGB", (16 + 3 * i, 20), (40 * i, 100, 200 - 40 * i)).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "prompt": "<image> what colour is this ?", "answer": "blue"})
    lines[1] = {"images": ["1.png", "2.png"], "prompt": "what is this ?", "answer": "two images"}
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8-sig")
    return folder / "lines.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaVA with its processor, as from_pretrained reads it."""
    where = tmp_path / "tiny llava"
    tiny.llava().save_pretrained(where)
    processor = words.llava()
    processor.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ '<image> ' if p['type'] == 'image' else p['text'] + ' ' }}{% endfor %}{% endfor %}"
    )
    processor.save_pretrained(where)
    return where


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that commands load."""
    from tokenops.cli import models

    found: list[Any] = []
    load = models.load_model

    def keep(*arguments: Any) -> Any:
        found.append(load(*arguments))
        return found[-1]

    monkeypatch.setattr(models, "load_model", keep)
    return found


def untouched(model: Any) -> bool:
    return attached(model) is None and all(p.requires_grad for p in model.parameters())


def test_calibrate_a_folder(
    folder: Path, data: Path, tmp_path: Path, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my alvts"
    given = [str(folder), "--data", str(data), "--out", str(out), "--keep", "0.5", *QUICK]
    assert main(["calibrate", *given, "--json"]) == DONE
    heard = capsys.readouterr()
    report = json.loads(heard.out)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["rank"], report["prompts"], report["keep"]) == (2, 4, [0.5] * 3)
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2]
    assert "fitting 3 layers to 4 prompts" in heard.err
    assert {f.name for f in out.iterdir()} == {"config.json", "model.safetensors", "report.json"}
    model, processor = loaded[0]
    assert untouched(model)
    pipeline = tokenops.load(out)
    assert isinstance(pipeline.stages["layers"], Route)
    record = read_records("test", data, "", answers=False)[1]
    with tokenops.attach(model, pipeline) as handle, torch.no_grad():
        model(**record.encoded(processor))
    assert [(entry.n, entry.k) for entry in handle.trace][:2] == [(16, 8)] * 2

    assert main(["calibrate", *given]) == MISUSED  # a finished pipeline stays
    assert "holds a config.json" in capsys.readouterr().err


def test_calibrate_with_a_ratio_for_each_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--budget", "0.2", "--budget-samples", "2", *QUICK]
    assert main(["calibrate", "pocket", "--out", str(out), *options]) == DONE
    said = capsys.readouterr().out
    assert "spearman" in said
    assert f"saved to {out}" in said
    keeps = json.loads((out / "report.json").read_text())["keep"]
    assert len(keeps) == 4
    assert sum(keeps) / 4 == pytest.approx(0.2, abs=1 / 256)
    schedule: Any = tokenops.load(out).stages["layers"].keep
    assert [schedule(layer) for layer in range(4)] == keeps


def test_calibrate_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, calls = calibration._fit_layer, []

    def counted(number: int, *arguments: Any) -> Any:
        calls.append(number)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return fit(number, *arguments)

    monkeypatch.setattr(calibration, "_fit_layer", counted)
    whole, out = tmp_path / "whole", tmp_path / "out"
    given = ["calibrate", "pocket", *QUICK, "--out"]
    assert main([*given, str(out)]) == INTERRUPTED
    heard = capsys.readouterr()
    assert heard.out == ""
    assert "interrupted" in heard.err
    assert "goes on from there" in " ".join(heard.err.split())
    assert {f.name for f in out.iterdir()} == {"unfinished"}
    assert main([*given, str(out), "--seed", "1"]) == MISUSED
    assert "seed" in capsys.readouterr().err
    assert main([*given, str(out)]) == DONE
    assert calls == [0, 1, 1, 2, 3]  # the first layer once
    assert main([*given, str(whole)]) == DONE
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert not (out / "unfinished").exists()


def test_calibrate_a_folder_of_images(folder: Path, data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    given = ["--data", str(data.parent), "--prompt", "what is this ?", "--out", out, *QUICK]
    assert main(["calibrate", str(folder), *given]) == DONE
    assert json.loads((tmp_path / "out" / "report.json").read_text())["prompts"] == 4


def trained(folder: Any, data: Path, out: Path, *more: str) -> int:
    given = ["--data", str(data), "--steps", "4", "--batch", "2", "--save-every", "2", "--device", "cpu"]
    return main(["train", str(folder), *given, "--lr", "0.01", "--keep", "0.3", "--out", str(out), *more])


def test_train_a_folder(
    folder: Path, data: Path, tmp_path: Path, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my scorer"
    assert trained(folder, data, out, "--json", "--accumulate", "2") == DONE
    heard = capsys.readouterr()
    report = json.loads(heard.out)
    assert report == json.loads((out / "report.json").read_text())
    assert [entry["step"] for entry in report["log"]] == [1, 2, 3, 4]
    assert all(entry["loss"] > 0 and "soft_hard_gap" in entry for entry in report["log"])
    assert {f.name for f in out.iterdir()} == {"config.json", "model.safetensors", "report.json"}
    model, processor = loaded[0]
    assert untouched(model)
    assert not model.training
    pipeline = tokenops.load(out)
    scorer: Any = pipeline.stages["after_projector"].selector.scorer
    assert scorer.q_proj.weight.abs().max() > 1e-3  # a fresh one has 1e-4
    record = read_records("test", data, "", answers=True)[0]
    with tokenops.attach(model, pipeline) as handle, torch.no_grad():
        model(**record.encoded(processor))
    assert handle.trace[0].k == 4
    assert trained(folder, data, out) == MISUSED


def test_train_goes_on(
    folder: Path,
    data: Path,
    tmp_path: Path,
    loaded: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted after step 3 of 4, with half a checkpoint: the result is that of one run."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert trained(folder, data, whole) == DONE
    forward, calls = Trainable.forward, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            half = out / "unfinished" / "checkpoint-3"
            half.mkdir()
            (half / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Trainable, "forward", interrupted)
    capsys.readouterr()
    assert trained(folder, data, out) == INTERRUPTED
    heard = capsys.readouterr()
    assert heard.out == ""
    assert "goes on from there" in " ".join(heard.err.split())
    assert {f.name for f in (out / "unfinished").iterdir()} == {"run.json", "checkpoint-2"}
    assert all(untouched(model) for model, _ in loaded)
    assert trained(folder, data, out, "--seed", "1") == MISUSED
    assert "another seed" in capsys.readouterr().err
    assert trained(folder, data, out) == DONE
    assert "going on after step 2" in capsys.readouterr().err
    assert len(calls) == 4 + 2
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    logs = [json.loads((f / "report.json").read_text())["log"] for f in (whole, out)]
    assert logs[0] == logs[1]


def test_train_the_pocket_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scorer"
    assert main(["train", "pocket", "--steps", "2", "--batch", "2", "--out", str(out)]) == DONE
    said = capsys.readouterr().out
    assert "soft hard gap" in said
    assert f"saved to {out}" in said
    assert json.loads((out / "report.json").read_text())["lr"] == 3e-3
    with tokenops.attach(pocket.load()[0], tokenops.load(out)):
        pass


def left_by(command: str, folder: Path, data: Path, out: Path) -> dict[str, bytes]:
    """An interrupted run of a command in a folder; the files it left, by name."""
    if command == "train":
        with pytest.MonkeyPatch.context() as patched:
            forward, calls = Trainable.forward, []

            def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
                calls.append(1)
                if len(calls) == 4:
                    raise KeyboardInterrupt
                return forward(self, *args, **kwargs)

            patched.setattr(Trainable, "forward", interrupted)
            assert trained(folder, data, out) == INTERRUPTED
    else:
        with pytest.MonkeyPatch.context() as patched:
            fit = calibration._fit_layer

            def stopped(number: int, *arguments: Any) -> Any:
                if number == 1:
                    raise KeyboardInterrupt
                return fit(number, *arguments)

            patched.setattr(calibration, "_fit_layer", stopped)
            given = ["calibrate", str(folder), "--data", str(data), "--out", str(out)]
            assert main([*given, *QUICK]) == INTERRUPTED
    return files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(("first", "second"), [("train", "calibrate"), ("calibrate", "train")])
def test_a_command_leaves_the_unfinished_run_of_another(
    first: str, second: str, folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    left = left_by(first, folder, data, out)
    assert len(left) > 2
    capsys.readouterr()
    given = [second, str(folder), "--data", str(data), "--device", "cpu", "--out", str(out)]
    assert main(given) == MISUSED
    said = capsys.readouterr().err
    assert f"error: tokenops {second}: the run that is in {out / 'unfinished'}" in said
    assert said.endswith("got another command\n")
    assert files_of(out) == left


@pytest.mark.parametrize("content", ["mine", "[]", "{", ""])
@pytest.mark.parametrize("command", ["calibrate", "train"])
def test_a_folder_that_only_has_the_name_is_left_alone(
    command: str,
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user's own, a file of that name, and notes that are not a run's."""
    monkeypatch.setattr("tokenops.cli.models.load_model", no_model)
    mine = tmp_path / "unfinished"
    if content:
        mine.mkdir()
        (mine / ("run.json" if content != "mine" else "novel.txt")).write_text(content)
    else:
        mine.write_text("a file")
    before = files_of(tmp_path)
    assert main([command, "pocket", "--out", str(tmp_path)]) == MISUSED
    assert "which is of no run" in capsys.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("command", ["calibrate", "train"])
def test_where_nothing_is_done_nothing_is_left(
    command: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Stopped before the first checkpoint or layer: no note that would stand in another run's way."""
    from tokenops.cli import trainer

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "trained", stopped)
    monkeypatch.setattr("tokenops.training.calibrate", stopped)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    few = ["--samples", "2"] if command == "calibrate" else []
    assert main([command, "pocket", *few, "--out", str(out)]) == INTERRUPTED
    assert "goes on from there" not in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == ([out] if there else [])
    assert not there or not list(out.iterdir())


def no_model(*_: Any) -> Any:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calibrate", "pocket"], "--out"),
        (["calibrate", "{model}", "--out", "out"], "--data"),
        (["calibrate", "{model}", "--data", "nowhere.jsonl", "--out", "out"], "no such file"),
        (["calibrate", "nowhere", "--data", "{data}", "--out", "out"], "'nowhere'"),
        (["calibrate", "pocket", "--out", "{data}"], "the file"),
        (["calibrate", "pocket", "--out", "{model}"], "config.json"),
        (["calibrate", "pocket", "--out", "out", "--rank", "0"], "--rank"),
        (["calibrate", "pocket", "--out", "out", "--samples", "1"], "--samples"),
        (["calibrate", "pocket", "--out", "out", "--keep", "1.5"], "1.5"),
        (["calibrate", "pocket", "--out", "out", "--keep", "half"], "'half'"),
        (["calibrate", "pocket", "--out", "out", "--budget", "64"], "--budget"),
        (["calibrate", "pocket", "--out", "out", "--budget", "0.2", "--keep", "0.2"], "both"),
        (["calibrate", "pocket", "--out", "out", "--loss", "huber"], "listwise"),
        (["calibrate", "pocket", "--out", "out", "--device", "tpu"], "--device"),
        (["calibrate", "pocket", "--out", "out", "--dtype", "int8"], "--dtype"),
        (["train", "{model}", "--out", "out"], "--data"),
        (["train", "pocket", "--out", "out", "--data", "{folder}"], "the folder"),
        (["train", "pocket", "--out", "out", "--keep", "0"], "--keep"),
        (["train", "pocket", "--out", "out", "--steps", "0"], "--steps"),
        (["train", "pocket", "--out", "out", "--lr", "nan"], "--lr"),
        (["train", "pocket", "--out", "out", "--weight", "inf"], "--weight"),
        (["train", "pocket", "--out", "out", "--gate", "door"], "multiply"),
        (["train", "pocket", "--out", "out", "--scope", "batch"], "sample"),
        (["train", "pocket", "--out", "out", "--nonsense"], "--nonsense"),
    ],
)
def test_refused_before_a_model_is_loaded(
    arguments: list[str],
    told: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr("tokenops.cli.models.load_model", no_model)
    monkeypatch.chdir(tmp_path)
    known = {"data": data, "folder": data.parent, "model": tmp_path / "model"}
    assert main([argument.format(**known) for argument in arguments]) == MISUSED
    heard = capsys.readouterr()
    assert heard.out == ""
    assert told in heard.err
    assert "Traceback" not in heard.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        ('{"prompt": "what ?"}', "image"),
        ('{"image": 3, "prompt": "what ?"}', "image"),
        ('{"image": "0.png"}', "prompt"),
        ('{"image": "0.png", "prompt": ""}', "prompt"),
        ('{"image": "none.png", "prompt": "what ?"}', "none.png"),
    ],
)
def test_bad_lines_are_named(line: str, told: str, data: Path) -> None:
    good = data.read_text(encoding="utf-8-sig").splitlines()[0]
    data.write_text(f"{good}\n\n{line}\n")
    with pytest.raises(TokenOpsError, match=f"line 3.*{told}"):
        read_records("test", data, "", answers=False)


def test_records_for_training_need_answers_but_no_image(data: Path) -> None:
    data.write_text('{"prompt": "what ?", "answer": "this"}\n')
    (record,) = read_records("test", data, "", answers=True)
    assert Examples([record], words.llava())[0] == {"prompt": "\nwhat ?", "answer": "this"}
    data.write_text('{"prompt": "what ?"}\n')
    with pytest.raises(TokenOpsError, match="answer"):
        read_records("test", data, "", answers=True)
    for text in ("", "\n \n"):
        data.write_text(text)
        with pytest.raises(TokenOpsError, match="an empty file"):
            read_records("test", data, "", answers=True)


def test_prompts_and_placeholders(data: Path) -> None:
    images = tuple(data.parent / f"{i}.png" for i in range(2))
    processor = words.llava()
    assert Record(images, "this ?", None, "here").text(processor) == "<image><image>\nthis ?"
    assert Record(images, "<image> and <image>", None, "here").text(processor) == "<image> and <image>"
    with pytest.raises(TokenOpsError, match="here.*2 <image>"):
        Record(images, "<image> this ?", None, "here").text(processor)
    with pytest.raises(TokenOpsError, match="chat template"):
        Record(images, "this ?", None, "here").text(words.tokenizer())


def test_a_file_that_is_no_image(folder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data.parent / "3.png").write_bytes(b"no image")
    out = data.parent / "out"
    assert (
        main(["calibrate", str(folder), "--data", str(data), "--out", str(out), *QUICK[:2], "--samples", "5"])
        == MISUSED
    )
    heard = capsys.readouterr()
    assert "line 4" in heard.err
    assert "3.png" in heard.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "missing"), [("calibrate", "tqdm"), ("train", "accelerate"), ("train", "transformers")]
)
def test_a_missing_extra_is_named(
    command: str,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert main([command, "pocket", "--out", str(tmp_path / "out")]) == MISUSED
    said = capsys.readouterr().err
    assert "pip install 'tokenops[demo,train]'" in said
    assert missing in said


@pytest.mark.parametrize("command", ["calibrate", "train"])
def test_a_folder_without_a_model(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [command, str(tmp_path / "empty"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(given) == MISUSED
    assert "from_pretrained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["calibrate", "train", "show", "cite", "list"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: tokenops {command}" in said
    assert "Exit codes: 0 done" in said
    assert "--json" in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("arguments", "when"),
    [
        (
            ["calibrate", "pocket", "--samples", "64", "--rank", "8"],
            lambda f: (f / "layer-000.json").exists(),
        ),
        (
            ["train", "pocket", "--steps", "4000", "--save-every", "2", "--batch", "2"],
            lambda f: any(f.glob("ch*")),
        ),
    ],
)
def test_ctrl_c_in_a_process(arguments: list[str], when: Callable[[Path], bool], tmp_path: Path) -> None:
    """What is left are whole files to go on from, and no pipeline."""
    variables = os.environ | {"PYTHONPATH": str(source.ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tokenops", *arguments, "--out", "out", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    unfinished = tmp_path / "out" / "unfinished"
    with subprocess.Popen(command, cwd=tmp_path, env=variables, **pipes) as process:
        for _ in range(1200):
            if when(unfinished) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, errors
    assert printed == ""
    assert "Traceback" not in errors
    assert "goes on from there" in " ".join(errors.split())
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"unfinished"}
    assert not list(unfinished.glob("*.part"))
    for checkpoint in unfinished.glob("checkpoint-*"):
        assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] > 0
    shutil.rmtree(unfinished)
