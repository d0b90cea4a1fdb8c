"""The report in a real chromium: slider, scores, cursor, keyboard; wide and on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from analysis import report_kit as kit
from browser.test_site import look
from integrations import merging, routed, tiny

from tokenops import Pipeline, Prune
from tokenops.analysis import Report, report
from tokenops.selectors import TopK

pytestmark = pytest.mark.browser

QUESTION = "what is </script><b id='broken'>this</b> ?"
FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A page for every family: several images, and on Qwen a video."""
    folder, made = tmp_path_factory.mktemp("reports"), {}
    for family in FAMILIES:
        pruned = Pipeline(after_projector=Prune(TopK(routed.direction, 0.5)))
        which = {
            "pruned": pruned,
            "<i>both</i>": pruned | routed.routed((0.5, None, 0.25)),
            "merged": merging.merging(family, "visionzip"),
        }
        images = [kit.picture(30, 20), kit.picture(18, 40, seed=1)]
        videos = [[kit.picture(16, 24, seed) for seed in range(6)]] if family == "qwen2_5_vl" else []
        page: Report = report(
            tiny.MODELS[family](),
            kit.processor(family),
            images,
            QUESTION,
            which,
            videos=videos,
            runs=1 if family == "llava" else 0,
            new_tokens=3,
            device="h200",
        )
        made[family] = (page.write(folder / f"{family}.html"), page.data)
    return made


@pytest.fixture
def page(browser: Any, pages: dict[str, tuple[Path, Any]], request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open page; no error may be said on the console."""
    family, width = getattr(request, "param", ("llava", 1280))
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    opened, wrong = context.new_page(), []
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(pages[family][0].as_uri())
    opened.data = pages[family][1]
    yield opened
    context.close()
    assert not wrong


def test_one_round_tells_nothing(page: Any) -> None:
    said = page.locator("#notes").inner_text()
    assert "In brackets, the smallest and the largest: too few runs to tell" in said
    assert " 0 %" not in said


def set_to(page: Any, slider: str, value: int) -> None:
    page.locator(slider).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", str(value)
    )


def painted(page: Any) -> list[str]:
    """What stands on every canvas."""
    return page.locator("canvas").evaluate_all("all => all.map(c => c.toDataURL())")


def bright(page: Any, canvas: int, cell: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Whether nothing is painted over the middle of a cell."""
    code = """(c, [row, column, rows, columns]) => {
        const x = Math.floor((column + .5) * c.width / columns), y = Math.floor((row + .5) * c.height / rows);
        return c.getContext('2d').getImageData(x, y, 1, 1).data[3];
    }"""
    return page.locator("canvas").nth(canvas).evaluate(code, [*cell, *grid]) == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_wrong_with_the_page(
    browser: Any, pages: dict[str, tuple[Path, Any]], family: str, width: int
) -> None:
    assert not look(browser, pages[family][0].as_uri(), width)


def test_the_slider_changes_what_is_shown(page: Any) -> None:
    data, seen = page.data, {}
    for step in range(4):
        set_to(page, "#stage", step)
        seen[step] = painted(page)
        shown = page.locator("article").nth(2).locator(".count").inner_text()
        own = [s for s in data["methods"][2]["stages"] if s["visual"] == 0]
        stage = next((s for s in own if step and s["layer"] == step - 1), None) or own[0]
        assert f"image 1: {len(stage['index'])} of 16 tokens" in shown
    whole, both = slice(0, 2), slice(4, 6)
    assert seen[0][whole] == seen[1][whole] == seen[3][whole]
    assert seen[0][both] == seen[2][both]
    assert seen[0][both] != seen[1][both]
    assert seen[1][both] != seen[3][both]
    assert page.locator("#where").inner_text() == "layer 2 of 0 to 2"


@pytest.mark.parametrize("page", [(family, 390) for family in FAMILIES], indirect=True, ids=FAMILIES)
def test_kept_tokens_are_bright_and_others_are_not(page: Any) -> None:
    method, data, canvas = page.data["methods"][1], page.data, 0
    set_to(page, "#stage", 0)
    for number, visual in enumerate(data["visuals"]):
        (stage,) = [s for s in method["stages"] if s["visual"] == number]
        kept, places = set(stage["index"]), dict(zip(visual["index"], visual["grid"], strict=True))
        drawn = visual["views"] if visual["kind"] == "image" else visual["views"][:1]
        for view in drawn:
            index = sum(len(v["views"]) if v["kind"] == "image" else 1 for v in data["visuals"]) + canvas
            tokens = {}
            for part, top, left in view["tiles"]:
                for token, (own, row, column) in places.items():
                    if own == part:
                        tokens[top + row, left + column] = token
            for row in range(view["rows"]):
                for column in range(view["columns"]):
                    wanted = tokens.get((row, column)) in kept
                    assert bright(page, index, (row, column), (view["rows"], view["columns"])) == wanted
            canvas += 1


@pytest.mark.parametrize("page", [("qwen2_5_vl", 1280)], indirect=True)
def test_frames_of_a_video(page: Any) -> None:
    set_to(page, "#stage", 0)
    video = page.locator("article").nth(1).locator("figure").nth(2)
    pictures = set()
    for frame in range(3):
        set_to(page, "#frame", frame)
        pictures.add(video.locator("img").get_attribute("src"))
        assert f"frames {2 * frame} to {2 * frame + 1}" in video.inner_text()
    assert pictures == {view["picture"] for view in page.data["visuals"][2]["views"]}


def test_scores_are_a_layer_that_can_be_switched_on(page: Any) -> None:
    off = painted(page)
    page.locator("#heat").check()
    on = painted(page)
    assert on[2] != off[2]
    assert on[0] == off[0]
    assert page.locator("#legend").is_visible()
    page.locator("#heat").uncheck()
    assert painted(page) == off
    assert not page.locator("#legend").is_visible()


def test_keyboard_alone(page: Any) -> None:
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == "layer 0 of 0 to 2"
    picture = page.locator("article").nth(1).locator(".view").first
    picture.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    said = page.locator("article").nth(1).locator(".read").inner_text()
    stage = page.data["methods"][1]["stages"][0]
    kept = "kept" if 5 in stage["index"] else "not kept"
    assert said.startswith(f"token 5 (row 1, column 1): {kept}; score {json.dumps(stage['scores'][5])}")
    assert "row 1, column 1" in page.locator("article").nth(3).locator(".read").inner_text()


def test_a_tap_reads_a_token(page: Any) -> None:
    picture = page.locator("article").nth(3).locator(".view").nth(1)
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})
    said = page.locator("article").nth(3).locator(".read").inner_text()
    assert said.startswith("token 15 (row 3, column 3)")


def test_texts_are_texts(page: Any) -> None:
    assert page.locator("h1").inner_text() == QUESTION
    assert page.locator("#broken").count() == 0
    assert page.locator("article h3").all_inner_texts() == ["all tokens", "pruned", "<i>both</i>", "merged"]
    assert "Pipeline(after_projector=Prune(" in page.locator("#code").inner_text()


def test_every_control_and_picture_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, .view, article, [role=img], [role=region]')]
        .filter(e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label')
            && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert not nameless
    labels = page.locator(".view").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert labels[0] == "image 1, all tokens: 16 of 16 tokens kept"
    assert len(set(labels)) == len(labels)


def test_the_tables_hold_the_numbers(page: Any) -> None:
    rows = page.locator("#summary tbody tr").all_inner_texts()
    assert len(rows) == 4
    for row, method in zip(rows, page.data["methods"], strict=True):
        mean = sum(method["tokens_per_layer"]) / 3
        assert f"{mean:.4g}" in row
        assert f"{method['time']['speedup']['median']:.2f}" in row or method["name"] == "full"
    assert page.locator("#by-layer tbody tr").count() == 3
