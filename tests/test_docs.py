"""The documentation's sources and the tools that build and check it; ``make docs`` builds the site itself."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import evidence
import mathml
import public_names as public
import pytest
import site_check
import tables_choose

from tokenops import Selection
from tokenops.registry import KINDS
from tokenops.routers import Route
from tokenops.selectors.relaxations import gumbel_topk

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [p for p in DOCS.rglob("*") if p.suffix in (".md", ".rst") and "_build" not in p.parts]
DOLLARS = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?(?:\n[^$\n]+?)?)\$(?!\w)", re.DOTALL)
DIRECTIVE = re.compile(r"^( *)\.\. math::(.*)\n((?:\1 +.*\n|[ \t]*\n)*)", re.MULTILINE)


def formulas() -> list[tuple[str, str]]:
    """(file, LaTeX) of every formula in docstrings and pages."""
    found = []
    for path in (ROOT / "tokenops").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found += [(path.name, m[1]) for m in re.finditer(r":math:`([^`]+)`", text)]
        found += [(path.name, f"{m[2]}\n{m[3]}".strip()) for m in DIRECTIVE.finditer(text)]
    for path in (p for p in PAGES if p.suffix == ".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        found += [(path.name, m[1] or m[2]) for m in DOLLARS.finditer(text)]
    return found


def test_every_formula_becomes_mathml() -> None:
    known = formulas()
    assert len(known) > 150
    for where, tex in known:
        made = mathml.mathml(tex, block=True)
        assert made.startswith("<math"), where
        assert "\\" not in made, where


def test_formulas_look_right() -> None:
    made = mathml.mathml(r"\arg\max_{i \in S} -|x_i| \log p", block=True)
    assert '<munder><mo movablelimits="true"' in made
    assert "arg\u2009max" in made
    assert re.search(r'<mo[^>]*lspace="0"[^>]*>\|</mo>', made)
    assert re.search(r"log</mi><mspace", made)
    assert 'form="prefix"' in mathml.mathml("C(-u)", block=False)


@pytest.mark.parametrize("tex", [r"\nosuchcommand x", r"\frac{1", "x_{1"])
def test_a_formula_that_cannot_be_read_is_an_error(tex: str) -> None:
    with pytest.raises(ValueError, match="no MathML"):
        mathml.mathml(tex, block=False)


def test_cited_tests_exist() -> None:
    cited = evidence.cited(DOCS)
    assert len(cited) > 50
    assert not [t for t in cited if t.partition("::")[2] not in evidence.tests_in(t.partition("::")[0])]


def test_questions_are_answered_with_evidence() -> None:
    """Every answer cites a test, or says what is not there."""
    answers = re.split(r"^## ", (DOCS / "faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(answers) >= 12
    bare = [a.splitlines()[0] for a in answers if not evidence.CITED.search(a)]
    assert set(bare) == {"Does it run in a serving engine?", "What licence?"}


def test_pictures_have_an_alt_text() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert len(alt.split()) >= 3, f"{page.name}: {target}"
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_every_public_name_is_on_a_reference_page() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.rst"))
    packages = set(re.findall(r"^\.\. api:: (\S+)", text, re.MULTILINE))
    assert set(re.findall(r"^\.\. components:: (\S+)", text, re.MULTILINE)) == set(KINDS)
    components = {public.entry_path(e) for kind in KINDS for e in public.entries(kind)}
    missing = [p for p in public.exports() if p.rpartition(".")[0] not in packages and p not in components]
    assert not missing, "give its package an `.. api::` in docs/reference"


def test_what_the_tables_say_of_a_component() -> None:
    rows = {e.name: (public.signals(e), public.trainable(e)) for k in KINDS for e in public.entries(k)}
    assert rows["LearnedScorer"] == (["(segments)"], True)
    assert rows["feature_norm"] == ([], False)
    assert rows["fastv"][0] == ["last_attention"]
    assert rows["alvts"][1]


def drawn(x: int, *, by: Callable[..., Any] = gumbel_topk) -> None: ...


def test_signatures_read_like_the_source() -> None:
    text, result = public.annotated(Selection.scatter)
    assert "(positions: Int[Tensor, 'b n'], length: int" in text
    assert "self" not in text
    assert result == "Selection"
    assert public.annotated(drawn)[0] == "(x: int, *, by: Callable[..., Any] = gumbel_topk)"
    assert "<" not in public.annotated(Route)[0], "a default that nobody can read"


@pytest.mark.parametrize("module", ["evidence", "mathml", "public_names"])
def test_examples_in_the_tools(module: str) -> None:
    done = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert done.attempted
    assert not done.failed


GOOD = """<h1 id="top">x</h1><a href="#top">a</a><a href="b.html#there">b</a><a href="https://example.org/x">c</a>
<img src="p.png" alt="a picture"><a href="mailto:a@example.org">d</a><a href="sub/">e</a>
<p>x | y</p><p></p>| <pre>| a shell</pre><p><code>|</code> joins</p><p><b>a</b> | b</p>"""


def site(folder: Path, body: str = "", css: str = "") -> Path:
    """A small site that is fine but for what is added."""
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "index.html").write_text("<p>x</p>")
    (folder / "a.html").write_text(GOOD + body)
    (folder / "b.html").write_text('<p id="there">x</p>')
    (folder / "p.png").write_bytes(b"x")
    (folder / "s.css").write_text("a { background: url(data:image/png;base64,x) }" + css)
    return folder


def test_a_good_site_passes(tmp_path: Path) -> None:
    assert site_check.problems(site(tmp_path / "s")) == []
    assert site_check.main(tmp_path / "s") == 0


@pytest.mark.parametrize(
    ("body", "css", "said"),
    [
        ('<a href="gone.html">x</a>', "", "a.html: dead link: gone.html"),
        ('<a href="b.html#gone">x</a>', "", "a.html: no such anchor: b.html#gone"),
        ('<a href="#gone">x</a>', "", "a.html: no such anchor: #gone"),
        ('<a href="https://exam ple.org">x</a>', "", "a.html: no address: https://exam ple.org"),
        ('<a href="http:///x">x</a>', "", "a.html: no address: http:///x"),
        ('<img src="p.png">', "", "a.html: no alt text: p.png"),
        ('<img src="p.png" alt=" ">', "", "a.html: no alt text: p.png"),
        ('<img src="gone.png" alt="x">', "", "a.html: img is missing: gone.png"),
        ("<p>| a | b |\n| --- |</p>", "", "a.html: a broken table: | a | b | | --- |"),
        ("<ul><li><p>\n| <b>a</b> | b |</p></li></ul>", "", "a.html: a broken table: |"),
        (
            '<script src="https://cdn.example.org/a.js">',
            "",
            "a.html: script from outside: https://cdn.example",
        ),
        (
            '<link rel="stylesheet" href="//example.org/a.css">',
            "",
            "a.html: link from outside: //example.org",
        ),
        (
            "",
            "@import 'https://example.org/f.css';",
            "s.css: from outside: @import 'https://example.org/f.css",
        ),
        ("", "b { src: url(https://example.org/f.woff) }", "s.css: from outside: url(https://example.org/f"),
    ],
)
def test_what_is_wrong_with_a_site(tmp_path: Path, body: str, css: str, said: str) -> None:
    found = site_check.problems(site(tmp_path / "s", body, css))
    assert len(found) == 1
    assert found[0].startswith(said)
    assert site_check.main(tmp_path / "s") == 1


def test_no_site_is_a_problem(tmp_path: Path) -> None:
    assert site_check.problems(tmp_path) == [f"{tmp_path}: no pages"]


def test_the_best_method_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"method": "DivPrune", "budget": 14, "mean": 14.0, "accuracy": 0.5},
        {"method": "uniform", "budget": 14, "mean": 14.0, "accuracy": 0.75},
        {"method": "random", "budget": 14, "mean": 100.0, "accuracy": 0.9},
    ]
    monkeypatch.setattr(tables_choose, "read", lambda _: {"rows": rows, "full": 1.0, "questions": 9})
    line = next(x for x in tables_choose.choose().splitlines() if x.startswith("| nothing |"))
    assert line == "| nothing | uniform 75.0 |", "unequal mean tokens do not compare"


def test_results_hold_the_methods_that_the_page_names() -> None:
    known = {
        r["method"] for r in json.loads((ROOT / "benchmarks/results/pocket_routing.json").read_text())["rows"]
    }
    assert set(tables_choose.MEASURED_AS.values()) <= known
    assert all(known & set(methods) for _, methods in tables_choose.READY)


CONF = """
import sys
sys.path[:0] = [{ext!r}, {root!r}]
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
extensions += ["mathml", "reference_pages", "evidence"]
autodoc_typehints = "none"
autodoc_default_options = {{"members": True}}
nitpicky = True
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
"""


@pytest.mark.slow
def test_a_strict_build_sees_mistakes(tmp_path: Path) -> None:
    """A wrong test, name or formula and a forgotten public name are warnings; right ones are not."""
    (tmp_path / "conf.py").write_text(CONF.format(ext=str(DOCS / "_ext"), root=str(ROOT)))
    right = "{test}`test_errors.py::test_three_facts` {py:obj}`tokenops.selectors.TopK` $x_1$"
    wrong = "{test}`test_errors.py::test_nothing` {py:obj}`tokenops.selectors.TopQ` $\\nosuch$"
    (tmp_path / "index.md").write_text(f"# Page\n\n{right}\n\n{wrong}\n")
    (tmp_path / "evidence.rst").write_text(":orphan:\n\nEvidence\n========\n\n.. evidence::\n")
    (tmp_path / "selectors.rst").write_text(":orphan:\n\nS\n=\n\n.. components:: selector\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no test 'test_nothing' in tests/test_errors.py" in done.stderr
    assert "target not found: tokenops.selectors.TopQ" in done.stderr
    assert "no MathML" in done.stderr
    assert "tokenops.selectors.scorers.LearnedScorer has no entry in the reference" in done.stderr
    assert "test_three_facts" not in done.stderr
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<math" in html
    assert 'href="selectors.html#tokenops.selectors.TopK"' in html
    assert 'href="evidence.html#test-test-errors-py-test-three-facts"' in html
    shown = re.sub(r"<[^>]+>", "", (tmp_path / "out" / "selectors.html").read_text())
    assert "Float[Tensor, 'b n d']" in " ".join(unescape(shown).split())
