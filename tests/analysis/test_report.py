"""The report: what the page holds is what the trace says, and pictures are what the tower was shown."""

from __future__ import annotations

import base64
import io
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import source_imports as source

pytest.importorskip("transformers")

import numpy as np
import torch
from analysis import report_kit as kit
from integrations import merging, routed, tiny
from PIL import Image

from tokenops import Pipeline, Prune, attach, recipes
from tokenops.analysis import Report, report
from tokenops.analysis.measure import measuring
from tokenops.analysis.measure.statistics import TOO_FEW
from tokenops.analysis.report import asking, gather, record
from tokenops.analysis.report.views import Shown, views
from tokenops.errors import TokenOpsError
from tokenops.integrations import attached
from tokenops.integrations.families import find_parts
from tokenops.selectors import TopK

pytestmark = pytest.mark.hf

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
families = pytest.mark.parametrize("family", FAMILIES)
SIZES = [(30, 20), (18, 40)]


def pipelines(family: str) -> dict[str, Pipeline]:
    pruned = Pipeline(after_projector=Prune(TopK(routed.direction, 0.5)))
    return {
        "pruned": pruned,
        "routed": routed.routed((None, 0.3, 0.3)),
        "exited": routed.routed((None, 0.3, None), "exit"),
        "both": pruned | routed.routed((0.5, None, 0.25)),
        "merged": merging.merging(family, "visionzip"),
        "sample": Pipeline(after_projector=Prune(TopK(routed.direction, 0.3), scope="sample")),
    }


def made(
    family: str, which: dict[str, Pipeline], **options: Any
) -> tuple[Any, Any, list[Image.Image], Report]:
    model, processor = tiny.MODELS[family](), kit.processor(family)
    images = [kit.picture(*size, seed) for seed, size in enumerate(SIZES)]
    options = {"runs": 0, "new_tokens": 3} | options
    return model, processor, images, report(model, processor, images, kit.QUESTION, which, **options)


# -- the data are the trace ------------------------------------------------------------------------------


@families
def test_the_page_holds_the_trace(family: str) -> None:
    which = pipelines(family)
    model, processor, images, page = made(family, which)
    data = kit.data_of(page.html())
    assert [m["name"] for m in data["methods"]] == ["full", *which]
    assert attached(model) is None
    inputs = asking.encode(model, processor, images, [], kit.QUESTION)
    assert data["text_tokens"] == int((inputs["input_ids"] != tiny.IMAGE).sum()) + lines(family, data, inputs)
    for method, pipeline in zip(data["methods"][1:], which.values(), strict=True):
        assert method["code"] == repr(pipeline)
        with attach(model, pipeline) as handle, torch.no_grad():
            model(**inputs)
            traces, per_layer = handle.trace, handle.tokens_per_layer
        assert method["tokens_per_layer"] == list(per_layer)
        assert len(method["stages"]) == len(traces) > 0
        for stage, trace in zip(method["stages"], traces, strict=True):
            visual = data["visuals"][stage["visual"]]
            assert (stage["stage"], stage["layer"], stage["visual"]) == (
                trace.stage,
                trace.layer,
                trace.image,
            )
            assert stage["index"] == trace.index.tolist()
            ordinals = [visual["index"].index(number) for number in stage["index"]]
            assert ordinals == sorted(ordinals)
            assert [visual["grid"][i] for i in ordinals] == trace.grid.tolist()
            mass = [1.0] * trace.k if stage["mass"] is None else stage["mass"]
            assert mass == pytest.approx(trace.mass.tolist(), rel=1e-3)
            if trace.scores is not None:
                given = [s for s in stage["scores"] if s is not None]
                assert len(stage["scores"]) == visual["n"]
                assert given == pytest.approx(trace.scores.tolist(), rel=1e-3)


def lines(family: str, data: Any, inputs: Any) -> int:
    """Line breaks of LLaVA-NeXT are other tokens."""
    placeholders = int((inputs["input_ids"] == tiny.IMAGE).sum())
    found = placeholders - sum(v["n"] for v in data["visuals"])
    assert (found > 0) == (family == "llava_next")
    return found


@families
def test_what_a_slider_shows_is_what_ran(family: str) -> None:
    """The stage of a layer, or else the one before the layers: their counts are tokens_per_layer."""
    _, _, _, page = made(family, pipelines(family))
    for method in page.data["methods"]:
        for layer, mean in enumerate(method["tokens_per_layer"]):
            counts = []
            for number, visual in enumerate(page.data["visuals"]):
                own = [s for s in method["stages"] if s["visual"] == number]
                at = [s for s in own if s["layer"] == layer] or [s for s in own if s["layer"] is None]
                counts.append(len(at[0]["index"]) if at else visual["n"])
            assert sum(counts) / len(counts) == mean, (method["name"], layer)


def test_scores_of_a_layer_lie_on_the_tokens_that_entered() -> None:
    _, _, _, page = made("llava", pipelines("llava"))
    both = next(m for m in page.data["methods"] if m["name"] == "both")
    before = next(s for s in both["stages"] if s["layer"] is None and s["visual"] == 1)
    layer = next(s for s in both["stages"] if s["layer"] == 2 and s["visual"] == 1)
    scored = [number for number, s in enumerate(layer["scores"]) if s is not None]
    assert scored == before["index"]
    assert set(layer["index"]) < set(before["index"])
    best = sorted(scored, key=lambda number: -layer["scores"][number])[: len(layer["index"])]
    assert sorted(best) == layer["index"]


def test_answers_are_those_of_generate() -> None:
    which = {"tiny": Pipeline(after_projector=Prune(TopK(routed.direction, 1)))}
    model, processor, images, page = made("llava", which, new_tokens=6)
    inputs = asking.encode(model, processor, images, [], kit.QUESTION)
    start, options = inputs["input_ids"].shape[1], {"max_new_tokens": 6, "do_sample": False}
    said = model.generate(**inputs, **options)[0, start:]
    with attach(model, which["tiny"]):
        other = model.generate(**inputs, **options)[0, start:]
    read = [processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (said, other)]
    assert [m["answer"] for m in page.data["methods"]] == read


def test_nan_and_infinite_scores_are_null() -> None:
    def strange(x: torch.Tensor) -> torch.Tensor:
        scores = routed.direction(x)
        scores[:, 0], scores[:, 1] = torch.nan, -torch.inf
        return scores

    _, _, _, page = made("llava", {"strange": Pipeline(after_projector=Prune(TopK(strange, 4)))})
    stage = kit.data_of(page.html())["methods"][1]["stages"][0]
    assert stage["scores"][:2] == [None, None]
    assert stage["nan_scores"] == 1
    assert all(s is not None for s in stage["scores"][2:])


# -- pictures --------------------------------------------------------------------------------------------


def shown(family: str, images: list[Any], videos: list[Any] | None = None) -> tuple[Any, Any]:
    model, processor = tiny.MODELS[family](), kit.processor(family)
    inputs = asking.encode(model, processor, images, videos or [], kit.QUESTION)
    with attach(model, recipes.random(1.0)) as handle, torch.no_grad():
        model(**inputs)
        every = handle.trace
    what = Shown(find_parts(model), inputs, processor)
    kinds = [t.kind for t in every]
    return every, [views(what, t, kinds[:i].count(t.kind)) for i, t in enumerate(every)]


def close(pixels: torch.Tensor, image: Image.Image) -> bool:
    wanted = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.shape == wanted.shape and int((pixels.int() - wanted.int()).abs().max()) <= 1


def test_llava_shows_what_the_crop_left() -> None:
    image = kit.picture(32, 16)
    every, ((view,),) = shown("llava", [image])
    assert close(view.pixels, image.crop((8, 0, 24, 16)))
    assert (view.rows, view.columns) == (4, 4)
    assert every[0].grid[:, 1:].amax(0).tolist() == [3, 3]


@pytest.mark.parametrize("size", [(32, 32), (16, 32), (32, 16)])
def test_llava_next_puts_its_crops_together(size: tuple[int, int]) -> None:
    image = kit.picture(*size)
    every, ((whole, joined),) = shown("llava_next", [image])
    assert whole.pixels.shape == (16, 16, 3)
    assert close(joined.pixels, image)
    covered = [(c, r, k) for c, r, k in every[0].grid.tolist() if c > 0]
    places = {at(joined, *cell) for cell in covered}
    assert places == {(r, c) for r in range(size[1] // 4) for c in range(size[0] // 4)}


def at(view: Any, part: int, row: int, column: int) -> tuple[int, int]:
    (corner,) = [tile[1:] for tile in view.tiles if tile[0] == part]
    return corner[0] + row, corner[1] + column


def test_llava_next_has_no_tokens_on_its_padding() -> None:
    every, ((_, joined),) = shown("llava_next", [kit.picture(32, 24)])
    cells = {at(joined, *cell) for cell in every[0].grid.tolist() if cell[0] > 0}
    rows = {row for row, _ in cells}
    assert rows == set(range(1, 7))
    for row in range(joined.rows):
        band = joined.pixels[4 * row : 4 * row + 4].float()
        assert row in rows or bool((band.std((0, 1)) < 1).all()), "a row with content has no tokens"


def test_qwen_undoes_the_order_of_its_patches() -> None:
    image, other = kit.picture(32, 24), kit.picture(16, 40, seed=1)
    every, drawn = shown("qwen2_5_vl", [image, other])
    assert [close(one.pixels, given) for (one,), given in zip(drawn, (image, other), strict=True)] == [
        True
    ] * 2
    assert [(v.rows, v.columns) for (v,) in drawn] == [(3, 4), (5, 2)]
    assert [t.grid[:, 1:].amax(0).tolist() for t in every] == [[2, 3], [4, 1]]


def test_a_video_has_a_picture_for_every_step() -> None:
    frames = [kit.picture(16, 24, seed) for seed in range(6)]
    image = kit.picture(32, 24, seed=9)
    every, drawn = shown("qwen2_5_vl", [image], [frames])
    assert [t.kind for t in every] == ["image", "video"]
    assert close(drawn[0][0].pixels, image)
    assert [close(view.pixels, frame) for view, frame in zip(drawn[1], frames[::2], strict=True)] == [
        True
    ] * 3
    assert [view.title for view in drawn[1]] == ["frames 0 to 1", "frames 2 to 3", "frames 4 to 5"]
    assert [view.tiles for view in drawn[1]] == [((i, 0, 0),) for i in range(3)]


def test_a_report_of_a_video_and_an_image() -> None:
    model, processor = tiny.qwen(), kit.processor("qwen2_5_vl")
    frames = [kit.picture(16, 24, seed) for seed in range(4)]
    which = pipelines("qwen2_5_vl")
    page = report(
        model, processor, kit.picture(16, 16), "what ?", which, videos=[frames], runs=0, new_tokens=2
    )
    kinds = [(v["kind"], len(v["views"]), v["original"] is None) for v in page.data["visuals"]]
    assert kinds == [("image", 1, False), ("video", 2, True)]
    assert page.data["methods"][0]["cost"]["flops"] > 0


def test_a_picture_is_turned_as_its_camera_said() -> None:
    image = kit.picture(16, 8)
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    (turned,) = asking.pictures(Image.open(file))
    assert turned.size == (8, 16)


def test_pictures_in_the_page_open_and_are_small() -> None:
    large = torch.from_numpy(np.array(kit.picture(2400, 1200)))
    address = record.data_address(large)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as opened:
        assert opened.size == (1024, 512)
        assert opened.format == "JPEG"
    small = record.data_address(large[:12, :20])
    with Image.open(io.BytesIO(base64.b64decode(small.partition(",")[2]))) as opened:
        assert close(torch.from_numpy(np.array(opened)), kit.picture(2400, 1200).crop((0, 0, 20, 12)))


# -- the page --------------------------------------------------------------------------------------------

NASTY = "</script><b id=x>&amp; <!-- {{data}} \u2028 ' \" \\ <image> ]]> \ud800"


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    record = {"question": NASTY, "model": NASTY, "methods": [{"name": NASTY, "answer": NASTY, "code": NASTY}]}
    plain, nasty = Elements(), Elements()
    page = Report(record)
    text = page.write(tmp_path / "page.html").read_text(encoding="utf-8")
    nasty.feed(text)
    plain.feed(Report({"question": "a", "model": "b", "methods": []}).html())
    assert nasty.tags == plain.tags
    assert kit.data_of(page.html())["methods"][0]["answer"] == NASTY
    assert text.count("<script") == 2


def test_the_page_asks_for_nothing_else() -> None:
    _, _, _, page = made("llava", pipelines("llava"))
    elements = Elements()
    elements.feed(page.html())
    assert not [pair for pair in elements.attributes if pair[0] in ("src", "href", "action")]
    assert re.search(r"default-src 'none'", page.html())
    assert "http" not in re.sub(r"http-equiv", "", page.html())
    assert len(page.html()) < 200_000


def test_write_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = Report({"question": "a", "model": "b"}), tmp_path / "new" / "page.html"
    assert page.write(path) == path
    before = path.read_bytes()

    def broken(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(KeyboardInterrupt):
        page.write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(TokenOpsError, match="a file to write"):
        page.write(tmp_path)


def test_time_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "device_name", lambda device: "h200")
    calls: list[None] = []
    which = {"few": recipes.random(0.25)}
    _, _, _, page = made("llava", which, runs=1, step=lambda: calls.append(None))
    assert len(calls) == gather.steps(1, 1)
    full, few = page.data["methods"]
    assert few["time"]["kv_bytes"] < full["time"]["kv_bytes"]
    assert few["time"]["limit"]["speedup"] >= 1.0
    assert few["cost"]["flops"] < full["cost"]["flops"]
    assert [a < b for a, b in zip(few["cost"]["layers"], full["cost"]["layers"], strict=True)] == [True] * 3
    assert page.data["timing"]["runs"] == 1
    assert few["time"]["speedup"]["verdict"] == TOO_FEW
    script = re.search(r"<script>.*</script>", page.html(), re.DOTALL)
    assert script is not None
    assert f'"{TOO_FEW}"' in script[0], "what the note under the table goes by"


def test_work_that_cannot_be_counted_has_a_reason() -> None:
    def unknown(x: torch.Tensor) -> torch.Tensor:
        return routed.direction(x)

    _, _, _, page = made("llava", {"unknown": Pipeline(after_projector=Prune(TopK(unknown, 4)))})
    found = page.data["methods"][1]["cost"]
    assert found["reason"]


def test_the_example_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.picture(60, 40).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", "--runs", "0", "--images", "a.png", "a.png"])
    runpy.run_path(str(source.ROOT / "examples" / "report.py"), run_name="__main__")
    data = kit.data_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(data["visuals"]) == 2
    assert len(data["methods"]) == 6


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": []}, "text only"),
        ({"images": "photo.jpg"}, "images of PIL"),
        ({"question": 3}, "a question as a string"),
        ({"question": "<image> <image> <image> what ?"}, "images and a question that the processor takes"),
        ({"pipelines": {}}, "at least one pipeline"),
        ({"pipelines": {"full": recipes.random(0.5)}}, "other than 'full'"),
        ({"pipelines": {"a": "random"}}, "a Pipeline"),
        ({"runs": -1}, "runs as an int >= 0"),
        ({"new_tokens": True}, "new_tokens as an int >= 1"),
        ({"videos": [[kit.picture(16, 16)]]}, "a processor with a video processor"),
        ({"device": "tpu"}, "report: a Device or one of h200"),
        ({"family": "llava"}, "got 'llava'"),
        ({"step": 3}, "step as a function"),
    ],
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    model = tiny.llava()
    given = {"images": kit.picture(16, 16), "question": "what ?", "pipelines": recipes.random(0.5), "runs": 0}
    with pytest.raises(TokenOpsError, match=re.escape(said)):
        report(model, kit.processor("llava"), **given | change)
    assert attached(model) is None


def test_a_layout_of_ones_own_is_refused() -> None:
    parts = SimpleNamespace(family=SimpleNamespace(layout=lambda *a: [], name="mine"))
    with pytest.raises(
        TokenOpsError, match="a family whose layout is among square, anyres, grid_thw, got mine"
    ):
        views(Shown(parts, {}, None), SimpleNamespace(), 0)  # type: ignore[arg-type]


def test_the_model_is_as_before_and_can_be_asked_again() -> None:
    """A fresh model: its first forward adds hooks, which go together with what says that they are there."""
    model, processor, images, first = made("llava", {"a": recipes.random(0.5)})
    assert not model.training
    again = report(model, processor, images, kit.QUESTION, {"a": recipes.random(0.5)}, runs=0, new_tokens=3)
    assert again.data == first.data
