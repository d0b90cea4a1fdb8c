"""The demo: exact counts, bytes that add up, whole files or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from PIL import Image

from tokenops import recipes
from tokenops.analysis import Panel, draw_panels, highlight, kept_mask
from tokenops.demo import measuring
from tokenops.demo.answering import answer_all, encode
from tokenops.demo.files import check_folder, write_all
from tokenops.demo.measuring import measure, same_length, time_prefill
from tokenops.demo.methods import BUDGETS, Subject, aloud, held_out, shipped
from tokenops.demo.run import LAYERS, PICTURE, TABLE, Result, Settings, run
from tokenops.demo.telling import Silent
from tokenops.errors import TokenOpsError
from tokenops.integrations import low_rank_factors
from tokenops.pocket.build import build_model, build_processor
from tokenops.selectors.scorers import LearnedScorer

pytestmark = pytest.mark.hf

COUNTS = {1.0: 144, 0.3: 43, 0.2: 28, 0.1: 14}
METHODS = ["visionselector", "alvts", "hybrid", "random", "uniform", "cls_attention"]


@pytest.fixture(scope="module")
def untrained() -> Subject:
    scorer = LearnedScorer(128).eval()
    model = build_model().eval()
    factors = low_rank_factors(model, 4)
    return Subject(
        model,
        build_processor(),
        lambda keep: recipes.visionselector(scorer, keep),
        lambda keep: recipes.alvts(factors, keep),
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One run on what ships."""
    settings = Settings(tmp_path_factory.mktemp("demo") / "new" / "folder", questions=60, rounds=1)
    return run(settings, subject=shipped())


@contextmanager
def interrupted_at(what: str) -> Iterator[Silent]:
    class Interrupted(Silent):
        @contextmanager
        def waiting(self, now: str, total: int | None) -> Iterator[Callable[[], None]]:
            if now == what:
                raise KeyboardInterrupt
            yield lambda: None

    yield Interrupted()


def test_counts_are_exact(shown: Result) -> None:
    assert [(row.method, row.keep) for row in shown.rows] == [(m, keep) for m in METHODS for keep in BUDGETS]
    assert all((row.tokens, row.n) == (COUNTS[row.keep], 144) for row in shown.rows)
    for answered in shown.answers:
        assert [a.tokens for a in answered.answers] == [144, 43, 28, 14]
        assert [int(a.kept.sum()) for a in answered.answers] == [144, 43, 28, 14]


def test_the_trained_model_answers(shown: Result) -> None:
    accuracy = {(row.method, row.keep): row.accuracy for row in shown.rows}
    assert len({accuracy[method, 1.0] for method in METHODS}) == 1
    assert accuracy["visionselector", 1.0] > 0.85
    assert accuracy["visionselector", 0.1] > accuracy["random", 0.1]
    assert sum(answered.answers[0].right for answered in shown.answers) >= len(shown.answers) - 1


def test_bytes_are_those_of_the_stored_tokens(shown: Result, untrained: Subject) -> None:
    text = untrained.model.config.text_config
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    words = len(["<bos>", "what", "digit", "is", "red", "?"])
    assert all(row.kv_bytes == per_token * (row.tokens + words) for row in shown.rows)


def test_files_hold_the_table_and_the_picture(shown: Result) -> None:
    folder = shown.table.parent
    assert sorted(file.name for file in folder.iterdir()) == sorted([LAYERS, TABLE, PICTURE])
    table = json.loads(shown.table.read_text())
    assert shown.table.read_text() == shown.json
    assert (table["format"], table["format_version"], table["seed"]) == ("tokenops-demo", 1, 0)
    assert table["questions"] >= 60
    assert table["prefill"]["rounds"] == 1
    assert table["prefill"]["unattached_ms"] > 0
    fields = {"method", "title", "keep", "tokens", "n", "accuracy", "by_kind", "questions"}
    fields |= {"prefill_ms", "prefill_ratio", "kv_bytes"}
    assert len(table["rows"]) == 24
    for row in table["rows"]:
        assert set(row) == fields
        assert 0 <= row["accuracy"] <= 1
        assert set(row["by_kind"]) == {"what", "where", "count"}
        assert row["prefill_ms"] > 0
        assert row["prefill_ratio"] > 0
    for answered in table["answers"]:
        assert {a["keep"] for a in answered["answers"]} == set(BUDGETS)
        assert all(a["right"] == (a["text"] == answered["truth"]) for a in answered["answers"])


def test_the_pictures_are_some(shown: Result) -> None:
    for file in (shown.picture, shown.layers):
        with Image.open(file) as picture:
            assert min(picture.size) > 1000
            assert len(picture.convert("RGB").resize((200, 200)).getcolors(40_000)) > 1000


def test_layers_look_at_different_places() -> None:
    subject, asked = shipped(), aloud(0)[0]
    (routed,) = (m for m in subject.methods() if m.name == "alvts")
    full, _, _, least = answer_all(subject, routed, asked).answers
    assert all(bool(mask.all()) for mask in full.layers)
    assert [int(mask.sum()) for mask in least.layers] == [14] * 4
    assert int(least.kept.sum()) > 20
    assert least.tokens == 14


@pytest.mark.parametrize(
    "what",
    ["loading the pocket model", "timing prefill", "asking held-out questions", "drawing"],
)
def test_an_interrupt_leaves_nothing(
    untrained: Subject, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "WARM_UP", 0)
    monkeypatch.setattr("tokenops.demo.methods.BUDGETS", (1.0,))
    monkeypatch.setattr("tokenops.demo.run.measure", lambda *_: [])
    with interrupted_at(what) as teller, pytest.raises(KeyboardInterrupt):
        run(Settings(tmp_path / "out", questions=1, rounds=1), teller, untrained)
    assert not list(tmp_path.iterdir())
    assert "_tokenops" not in vars(untrained.model.model), "still attached"


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "a.txt"
    old.write_bytes(b"old")
    write, calls = Path.write_bytes, 0

    def breaking(self: Path, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            write(self, data[:1])
            raise KeyboardInterrupt
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", breaking)
    with pytest.raises(KeyboardInterrupt):
        write_all({old: b"new", tmp_path / "b.txt": b"new"})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_timing_is_interleaved_and_not_of_the_warm_up(untrained: Subject) -> None:
    asked, steps = same_length(held_out(1, seed=3), 2), []
    plain, prefill = time_prefill(untrained, asked, 2, lambda: steps.append(1))
    assert len(plain) == 2
    assert len(steps) == 2 + measuring.WARM_UP
    assert set(prefill) == {(m, keep) for m in METHODS for keep in BUDGETS}
    assert all(len(p.seconds) == 2 and min(p.seconds) > 0 for p in prefill.values())
    assert {keep: p.tokens for (_, keep), p in prefill.items()} == COUNTS


def test_timing_ends_early_on_a_slow_machine(untrained: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(measuring, "WARM_UP", 1)
    plain, _ = time_prefill(untrained, same_length(held_out(1, seed=3), 1), 500)
    assert len(plain) == 1


def test_all_tokens_are_the_same_model_for_every_method(untrained: Subject) -> None:
    asked = same_length(held_out(1, seed=3), 2)
    plain, prefill = time_prefill(untrained, asked, 1)
    rows = measure(untrained, held_out(5, seed=3), plain, prefill)
    assert len({row.accuracy for row in rows if row.keep == 1.0}) == 1
    assert len(rows) == 24


def test_timed_questions_need_no_padding(untrained: Subject) -> None:
    inputs = encode(untrained, same_length(held_out(9, seed=1), 6))
    assert inputs["input_ids"].shape[0] == 6
    assert bool(inputs["attention_mask"].all())


def test_answers_say_what_was_kept(untrained: Subject) -> None:
    method = untrained.methods()[2]
    answered = answer_all(untrained, method, aloud(seed=2, number=1)[0])
    assert [a.keep for a in answered.answers] == list(BUDGETS)
    assert all(a.kept.shape == (12, 12) for a in answered.answers)
    assert not any(a.right for a in answered.answers if a.text != answered.asked.question.answer)


def test_the_same_seed_asks_the_same() -> None:
    assert [a.question for a in aloud(7)] == [a.question for a in aloud(7)]
    assert [a.question for a in aloud(7)] != [a.question for a in aloud(8)]
    assert len(held_out(30, 7)) < len(held_out(60, 7))


@pytest.mark.parametrize("bad", [{"questions": 0}, {"questions": True}, {"seed": -1}, {"rounds": 0}])
def test_bad_settings_are_refused(bad: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(TokenOpsError, match=next(iter(bad))):
        Settings(tmp_path, **bad)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(TokenOpsError, match="a folder to write to"):
            Settings(folder)
    check_folder(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == [file]


def test_highlight_leaves_kept_tokens_as_they_are() -> None:
    pixels = torch.randint(0, 256, (8, 12, 3), dtype=torch.uint8)
    kept = torch.tensor([[True, False, True], [False, False, True]])
    shown = highlight(pixels, kept)
    cells = kept.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(shown[cells], pixels[cells])
    bright = shown.float().mean(-1)
    assert bright[~cells].std() < 0.5 * pixels.float().mean(-1)[~cells].std()
    assert torch.equal(highlight(pixels, torch.ones_like(kept), scale=6)[::6, ::6], pixels)


def test_pictures_refuse_what_does_not_fit() -> None:
    pixels, kept = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.bool)
    for wrong in (pixels.float(), pixels[..., 0], pixels[:7]):
        with pytest.raises(TokenOpsError, match="highlight"):
            highlight(wrong, kept)
    with pytest.raises(TokenOpsError, match="bool mask"):
        highlight(pixels, kept.long())
    for bad in ({"scale": 0}, {"scale": True}, {"dim": 1.5}):
        with pytest.raises(TokenOpsError, match="highlight"):
            highlight(pixels, kept, **bad)
    with pytest.raises(TokenOpsError, match="one frame"):
        kept_mask(torch.tensor([[1, 0, 0]]), 2, 2)
    with pytest.raises(TokenOpsError, match="2 rows"):
        kept_mask(torch.tensor([[0, 2, 0]]), 2, 2)
    assert int(kept_mask(torch.zeros(0, 3), 2, 2).sum()) == 0
    with pytest.raises(TokenOpsError, match="1 x 2 panels"):
        draw_panels([[Panel(pixels, kept)]], rows=["a"], columns=["b", "c"], title="t")
