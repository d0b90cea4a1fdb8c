"""The role ``{test}`file.py::test_name``` links a claim to its proof, shown on the page *Evidence*.

A file or a test that does not exist is a warning, so a strict build fails.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parent.parent.parent
CITED = re.compile(r"\{test\}`([^`]+)`")


@cache
def tests_in(path: str) -> frozenset[str]:
    """Names of the tests in a file below ``tests``; empty where there is no such file.

    >>> "test_three_facts" in tests_in("test_errors.py")
    True
    """
    file = ROOT / "tests" / path
    if not file.is_file():
        return frozenset()
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(n.name for n in tree if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def cited(folder: Path) -> list[str]:
    """Every test that a page names, sorted."""
    pages = [p for p in folder.rglob("*.md") if "_build" not in p.parts]
    return sorted({test for page in pages for test in CITED.findall(page.read_text(encoding="utf-8"))})


def label(test: str) -> str:
    """The anchor of a test on the page."""
    return "test-" + re.sub(r"[^a-z0-9]+", "-", test.lower())


class TestRole(SphinxRole):
    """A link to the test on the page *Evidence*."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The name of the test, linked."""
        path, _, name = self.text.partition("::")
        if name not in tests_in(path):
            said = self.inliner.reporter.warning(f"no test {name!r} in tests/{path}", line=self.lineno)
            return [nodes.literal(text=self.text)], [said]
        link = pending_xref("", refdomain="std", reftype="ref", reftarget=label(self.text), refexplicit=True)
        link["refdoc"] = self.env.docname
        link["refwarn"] = True
        link += nodes.inline(text="test: " + name.removeprefix("test_").replace("_", " "))
        return [link], []


class Evidence(SphinxDirective):
    """The source of every cited test."""

    def run(self) -> list[nodes.Node]:
        """One section for each test."""
        lines: list[str] = []
        for test in cited(Path(self.env.srcdir)):
            path, _, name = test.partition("::")
            lines += [f".. _{label(test)}:", "", f".. rubric:: {name}", "", f"``tests/{path}``", ""]
            lines += [f".. literalinclude:: /../tests/{path}", f"   :pyobject: {name}", ""]
        box = nodes.Element()
        self.state.nested_parse(StringList(lines, source=self.name), self.content_offset, box)
        return box.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the directive."""
    app.add_role("test", TestRole())
    app.add_directive("evidence", Evidence)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
