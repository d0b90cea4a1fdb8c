"""The reference: ``.. components:: scorer`` and ``.. api:: tokenops.training`` write tables and entries.

Both read the package, so a new component or name shows up by itself. Names in annotations are links where
the thing is documented here; a name that no module of the package knows is a warning.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import public_names as public
import typer
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from typer.testing import CliRunner

from tokenops.cli.commands import app as command_line
from tokenops.registry import KINDS
from tokenops.signals import SIGNALS

_LOG = logging.getLogger(__name__)


def _paper(paper: str | None) -> str:
    number = (paper or "").removeprefix("arXiv:")
    if not paper or number == paper:
        return paper or "–"
    return f"`{number} <https://arxiv.org/abs/{number}>`__"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """An RST list-table."""
    lines = [".. list-table::", "   :header-rows: 1", "   :class: components", ""]
    for row in (header, *rows):
        lines += [f"   {'  -' if column else '* -'} {cell}" for column, cell in enumerate(row)]
    return [*lines, ""]


def entry(path: str, value: Any) -> list[str]:
    """The autodoc directive of an object."""
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {path}", ""]
    return [f".. py:data:: {path}", "", f"   {public.summary(value)}", ""]


class _Written(SphinxDirective):
    """A directive whose content is RST that we write."""

    has_content = False

    def parsed(self, lines: list[str], source: str) -> list[nodes.Node]:
        """``lines`` as nodes."""
        box = nodes.Element()
        self.state.nested_parse(StringList(lines, source=source), self.content_offset, box)
        return box.children


class Components(_Written):
    """Table and entries of what is registered under a kind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Name, what it does, needs, trainable, paper; then every docstring."""
        known = public.entries(self.arguments[0])
        rows = [
            (
                f":py:obj:`{e.name} <{public.entry_path(e)}>`",
                public.summary(e.component),
                ", ".join(f"``{n}``" for n in public.signals(e)) or "–",
                "yes" if public.trainable(e) else "–",
                _paper(e.paper),
            )
            for e in known
        ]
        lines = table(("name", "what it does", "needs", "trainable", "paper"), rows)
        for e in known:
            lines += entry(public.entry_path(e), e.component)
        return self.parsed(lines, self.name)


class Api(_Written):
    """Table of a package's names, then the docstrings of those whose public path is here.

    ``:elsewhere:`` lists names whose docstrings another page shows by hand; components stand on the pages of
    their kinds. The table links to all of them.
    """

    required_arguments = 1
    option_spec = {"elsewhere": directives.unchanged}  # noqa: RUF012 - docutils wants it so

    def run(self) -> list[nodes.Node]:
        """The names of the package's ``__all__``."""
        package = self.arguments[0]
        home = importlib.import_module(package)
        known = public.exports()
        shown = [
            path for path, value in known.items() if any(value is getattr(home, n) for n in home.__all__)
        ]
        away = {f"{package}.{name}" for name in self.options.get("elsewhere", "").split()}
        away |= {public.entry_path(e) for kind in KINDS for e in public.entries(kind)}
        rows = [(f":py:obj:`{p.rpartition('.')[2]} <{p}>`", public.summary(known[p])) for p in shown]
        lines = table(("name", "what it does"), rows)
        for path in shown:
            if path not in away and path.rpartition(".")[0] == package:
                lines += entry(path, known[path])
        return self.parsed(lines, self.name)


class Signals(_Written):
    """Table of the signals a component may ask for."""

    def run(self) -> list[nodes.Node]:
        """Name and meaning, from ``tokenops.signals.SIGNALS``."""
        rows = [(f"``{name}``", meaning) for name, meaning in SIGNALS.items()]
        return self.parsed(table(("keyword", "what it is"), rows), self.name)


def _signature(app: Sphinx, what: str, name: str, obj: Any, options: Any, *_: Any) -> tuple[str, str] | None:
    if what not in ("function", "method", "class"):
        return None
    try:
        return public.annotated(obj)
    except (TypeError, ValueError):
        return None


_SHARED = re.compile(r"^( +\w+(?:, \w+)+)(?=: )")


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads a docstring: what it would take for a type, and the type of a property."""
    for number, line in enumerate(lines):  # "low, high: ends of it" are two names
        lines[number] = _SHARED.sub(lambda names: names[1].replace(", ", "/"), line)
    if what == "property":
        lines[:0] = ["..", ""]  # a comment, as "Kept tokens: all of them" does not begin with a type
        getter = getattr(obj, "fget", None) or getattr(obj, "func", None)
        if getter is not None and (kind := public.annotated(getter)[1]):
            lines += ["", f":rtype: ``{kind}``"]


class _Links(SphinxPostTransform):
    """Names of the package become links to where they are documented, under whatever name they are given.

    What Python finds but nobody documents stays plain text. What nobody finds is left for Sphinx to resolve
    (``:meth:`reduce``` inside a class), or to complain about.
    """

    default_priority = 5  # before Sphinx's own

    def run(self, **_: Any) -> None:
        objects = self.env.domains.python_domain.objects
        for node in list(self.document.findall(pending_xref)):
            if node.get("refdomain") != "py":
                continue
            target, shown = node["reftarget"], node.children[0]
            here = node.get("refdoc", self.env.docname)
            path = public.find(target, node.get("py:module") or "")
            found = objects.get(path or "")
            if path and found:
                builder = self.env.app.builder
                node.replace_self(make_refnode(builder, here, found.docname, found.node_id, shown, path))
            elif public.exists(target) and target not in objects:
                node.replace_self(shown)


class _Complete(EnvironmentCollector):
    """Every public name has an entry somewhere."""

    def get_updated_docs(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        objects = env.domains.python_domain.objects
        paths = {public.entry_path(e) for kind in KINDS for e in public.entries(kind)}
        for path in sorted(paths.union(public.exports()) - set(objects)):
            _LOG.warning("%s has no entry in the reference", path)
        return []

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None: ...

    def merge_other(self, app: Sphinx, env: BuildEnvironment, docnames: set[str], other: Any) -> None: ...

    def process_doc(self, app: Sphinx, doctree: nodes.document) -> None: ...


class CommandLine(_Written):
    """The help of every command."""

    def run(self) -> list[nodes.Node]:
        """What ``tokenops --help`` and ``tokenops COMMAND --help`` print."""
        lines: list[str] = []
        for command in ("", *typer.main.get_command(command_line).commands):  # pyright: ignore[reportAttributeAccessIssue]
            asked = ["tokenops", *command.split(), "--help"]
            told = CliRunner().invoke(command_line, asked[1:], prog_name="tokenops", terminal_width=88).output
            lines += [f".. rubric:: {' '.join(asked[:-1])}", "", "::", ""]
            lines += [*textwrap.indent(told.strip("\n"), "   ").splitlines(), ""]
        return self.parsed(lines, self.name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register directives and handlers."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.add_directive("components", Components)
    app.add_directive("api", Api)
    app.add_directive("signals", Signals)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.add_directive("command-line", CommandLine)
    app.add_post_transform(_Links)
    app.add_env_collector(_Complete)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
