"""Every built page in a real chromium, wide and as wide as a phone: ``make browser-test``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
WIDTHS = {"wide": 1280, "phone": 390}

pytestmark = pytest.mark.browser

# what is wrong with the page as it stands on the screen
LOOK = """() => {
    const wrong = [], root = document.documentElement;
    if (root.scrollWidth > root.clientWidth)
        wrong.push(`${root.scrollWidth} pixels wide on a screen of ${root.clientWidth}`);
    for (const image of document.images)
        if (!image.complete || image.naturalWidth === 0) wrong.push(`picture not shown: ${image.src}`);
    const visible = e => e.checkVisibility({checkOpacity: false});
    for (const formula of document.querySelectorAll('math')) {
        const box = formula.getBoundingClientRect();
        if (visible(formula) && (box.width < 2 || box.height < 2))
            wrong.push(`formula without size: ${formula.textContent}`);
    }
    for (const left of document.querySelectorAll('.formula code, .MathJax, span.math'))
        wrong.push(`formula not drawn: ${left.textContent}`);
    const text = (document.querySelector('article') || document.body).textContent.trim();
    if (!location.pathname.endsWith('search.html') && text.length < 40) wrong.push('an empty page');
    return wrong;
}"""


def look(browser: Any, address: str, width: int) -> list[str]:
    """Open a page and say what is wrong with it: layout, pictures, formulas, console, requests."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("requestfailed", lambda asked: wrong.append(f"not loaded: {asked.url}"))
    page.on(
        "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url)
    )
    page.goto(address, wait_until="load")
    for image in page.locator("img[loading=lazy]").all():
        image.scroll_into_view_if_needed()
    wrong += page.evaluate(LOOK)
    context.close()
    return wrong


def test_there_is_a_site() -> None:
    assert "index.html" in PAGES, "run make docs first"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_page(browser: Any, page: str, width: int) -> None:
    assert not look(browser, (SITE / page).as_uri(), width)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<img src="nowhere.png" alt="x">', "picture not shown"),
        ('<div style="width: 900px">x</div>', "pixels wide on a screen of 390"),
        (
            '<math style="display: inline-block; width: 0; height: 0; overflow: hidden"></math>',
            "without size",
        ),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>throw new Error('broken')</script>", "script: broken"),
        ('<script src="https://example.org/a.js"></script>', "https://example.org"),
        ('<div class="formula"><code>x</code></div>', "not drawn"),
    ],
)
def test_the_look_sees_what_is_wrong(browser: Any, tmp_path: Path, body: str, said: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><h1>A page</h1><p>{'words ' * 20}</p>{body}", encoding="utf-8")
    assert any(said in wrong for wrong in look(browser, page.as_uri(), 390))


def test_the_search_finds_a_recipe(browser: Any) -> None:
    page = browser.new_page()
    page.goto((SITE / "search.html").as_uri() + "?q=divprune")
    page.locator("ul.search li a").first.wait_for(timeout=15_000)
    assert any("ecipes" in text for text in page.locator("ul.search li a").all_text_contents())
    page.close()
