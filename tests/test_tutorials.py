"""Every code cell of ``docs/tutorials`` runs, page by page, without a build of the documentation."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tokenops import registered, unregister

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = {path.stem: path for path in sorted(TUTORIALS.glob("*.md")) if path.stem != "index"}
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
# more than about five seconds of processor time
SLOW = {"calibrate-alvts", "hybrid", "measure", "timm", "train-visionselector", "write-a-component"}


def cells(page: str) -> list[tuple[int, str, str]]:
    """(line, header, code) of every code cell."""
    found = []
    for match in CELL.finditer(page):
        header = HEADER.match(match[1])
        code = match[1][header.end() :] if header else match[1]
        line = page[: match.start(1)].count("\n") + (header[0].count("\n") if header else 0)
        found.append((line, header[1] if header else "", code))
    return found


@contextmanager
def as_before() -> Iterator[None]:
    """What a page registers is gone afterwards, and its figures are closed."""
    from matplotlib import pyplot

    try:
        yield
    finally:
        pyplot.close("all")
        for entry in registered():
            if entry.component.__module__ == "__main__":
                unregister(entry.kind, entry.name)


@pytest.mark.hf
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAGES]
)
def test_cells_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGES[name].read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    with as_before():
        for line, _, code in cells(text):
            # an error names the page and its line
            tree = ast.increment_lineno(ast.parse(code), line)
            exec(compile(tree, str(PAGES[name]), "exec"), names)


def test_slow_pages_are_there() -> None:
    assert set(PAGES) >= SLOW


@pytest.mark.parametrize("name", PAGES)
def test_page_is_a_notebook_with_pictures_that_are_described(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    assert text.startswith("---\nfile_format: mystnb\n")
    assert len(text.splitlines()) <= 260
    found = cells(text)
    assert len(found) == text.count("\n```{code-cell}") >= 1
    for line, header, code in found:
        drawn = "plt.show()" in code
        alt = re.search(r'alt: "([^"]+)"', header)
        assert drawn == (alt is not None), f"{name}, line {line}: a picture and its alt text belong together"
        assert alt is None or len(alt[1].split()) >= 8


def test_cells_are_found() -> None:
    page = textwrap.dedent(
        """\
        ---
        file_format: mystnb
        ---
        # Page
        ```{code-cell} python
        ---
        mystnb:
          image:
            alt: "text"
        ---
        x = 1
        ```
        ```python
        not_run()
        ```
        ```{code-cell} python
        y = x
        ```
        """
    )
    assert [(line, code) for line, _, code in cells(page)] == [(10, "x = 1\n"), (16, "y = x\n")]
    assert 'alt: "text"' in cells(page)[0][1]
