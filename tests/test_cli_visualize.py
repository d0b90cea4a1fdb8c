"""``tokenops visualize``: the page, the summary, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import source_imports as source

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")

import torch
from analysis import report_kit as kit

import tokenops
from tokenops import recipes
from tokenops.analysis.report import gather
from tokenops.cli import DONE, INTERRUPTED, MISUSED, main

pytestmark = pytest.mark.hf

QUICK = ["--runs", "0", "--new-tokens", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _same_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", "--help"]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--image",
        "--question",
        "--method",
        "--pipeline",
        "--out",
        "--json",
        "hybrid",
        "Exit codes",
    ):
        assert words in said


def test_the_pocket_model_by_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["visualize", *QUICK, "--out", str(out), "--json"]) == DONE
    heard = json.loads(capsys.readouterr().out)
    data = kit.data_of(out.read_text(encoding="utf-8"))
    names = ["full", "visionselector", "alvts", "hybrid", "divprune", "cls_attention", "random"]
    assert [row["name"] for row in heard["rows"]] == [m["name"] for m in data["methods"]] == names
    assert heard["report"] == str(out)
    assert heard["question"] == data["question"]
    assert [sum(row["tokens_per_layer"]) / 4 for row in heard["rows"]] == [144] + [28] * 6
    assert {m["code"] is None for m in data["methods"][1:]} == {False}


@pytest.mark.parametrize("keep", ["64", "100"])
def test_a_count_for_every_method(keep: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """64 is the help's own example; half of what enters the layers of the hybrid runs in each, if it can."""
    assert main(["visualize", "--help"]) == DONE
    assert "count (64)" in " ".join(capsys.readouterr().out.split())
    assert main(["visualize", *QUICK, "--keep", keep, "--out", str(tmp_path / "page.html"), "--json"]) == DONE
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert len(rows) == 7
    assert {sum(row["tokens_per_layer"]) / 4 for name, row in rows.items() if name != "full"} == {int(keep)}
    assert f"keep={2 * int(keep)}), scope=" in rows["hybrid"]["pipeline"]


def test_own_pictures_budgets_and_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.jpg")]
    for path in pictures:
        kit.picture(60, 40).save(path)
    tokenops.save(recipes.uniform(0.25), tmp_path / "saved")
    out = tmp_path / "page.html"
    options = [
        *("--image", str(pictures[0]), "--image", str(pictures[1]), "--question", "how many ?"),
        *("--method", "random", "--keep", "0.5", "--keep", "12", "--pipeline", str(tmp_path / "saved")),
    ]
    assert main(["visualize", *QUICK, *options, "--out", str(out)]) == DONE
    assert capsys.readouterr().out.strip() == str(out)
    data = kit.data_of(out.read_text(encoding="utf-8"))
    assert [m["name"] for m in data["methods"]] == ["full", "random 0.5", "random 12", "saved"]
    assert [v["original"]["width"] for v in data["visuals"]] == [60, 60]
    assert data["question"] == "how many ?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "nothing"], "--method among"),
        (["--keep", "1.5"], "--keep"),
        (["--image", "nowhere.png"], "--image as a file that is there"),
        (["--pipeline", "nowhere"], "--pipeline as a folder that tokenops.save wrote"),
        (["--method", "random", "--method", "random"], "every contender once"),
        (["nowhere"], "MODEL as 'pocket'"),
        (["some/model"], "--image with a model of your own"),
        (["some/model", "--image", __file__, "--method", "visionselector"], "trained visionselector"),
        (["some/model", "--image", __file__, "--method", "hybrid"], "--method among"),
        (["--image", __file__], "an image that can be read"),
        (["--device", "abacus"], "--device cpu"),
        (["--out", "."], "--out as a file"),
    ],
)
def test_misuse(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["visualize", *QUICK, *arguments]) == MISUSED
    heard = capsys.readouterr()
    assert said in heard.err
    assert not heard.out
    assert not list(tmp_path.iterdir())


def test_a_model_from_a_folder_gets_the_methods_that_fit_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen has no CLS token: CLS attention is left out by default, and refused when asked for."""
    from integrations import tiny

    folder, image = tmp_path / "model", tmp_path / "a.png"
    tiny.qwen().save_pretrained(folder)
    kit.processor("qwen2_5_vl").save_pretrained(folder)
    kit.picture(32, 24).save(image)
    given = ["visualize", str(folder), *QUICK, "--image", str(image), "--out", str(tmp_path / "page.html")]
    assert main([*given, "--json"]) == DONE
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == [
        "full",
        "divprune",
        "random",
    ]
    assert main([*given, "--method", "cls_attention"]) == MISUSED


def test_interrupted_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "report", stopped)
    assert main(["visualize", *QUICK, "--out", str(tmp_path / "page.html")]) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(source.ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tokenops", "visualize", "--runs", "100000", "--out", "page.html"]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    try:
        for line in running.stderr:
            if "asking" in line:
                break
        time.sleep(2)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == INTERRUPTED, said
    assert said.strip().endswith("interrupted")
    assert not list(tmp_path.iterdir())
