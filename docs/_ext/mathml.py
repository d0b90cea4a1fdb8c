"""Formulas become MathML while the site is built: browsers draw it themselves, without scripts or fonts."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_SPACE = "{http://www.w3.org/1998/Math/MathML}"  # the namespace
# what the converter does not know, in terms of what it does
_SAY = (
    (re.compile(r"\\arg\s*\\(max|min)"), r"\\operatorname{arg\1}"),
    (re.compile(r"\\[bB]ig\\lfloor"), r"\\left\\lfloor"),
    (re.compile(r"\\[bB]ig\\rfloor"), r"\\right\\rfloor"),
    (re.compile(r"\\[bB]ig\\\|"), r"\\Vert "),
    (re.compile(r"\\thinspace"), r"\\,"),
    (re.compile(r"\\blacksquare"), "\N{BLACK SQUARE}"),
    (re.compile(r"\\sim"), "\N{TILDE OPERATOR}"),
)
_UNDER = {"max": "max", "min": "min", "argmax": "arg\u2009max", "argmin": "arg\u2009min"}
_FUNCTIONS = {"log", "ln", "exp", "cos", "sin"}
_RELATIONS = {"\N{TILDE OPERATOR}", "\N{LONG LEFT RIGHT DOUBLE ARROW}"}
_CLOSE = set(")]}|\N{RIGHT FLOOR}\N{DOUBLE VERTICAL LINE}")


def mathml(tex: str, *, block: bool) -> str:
    r"""One formula as a ``<math>`` element.

    Raises:
        ValueError: the converter failed, or left a command as it stands.

    >>> mathml(r"\arg\max_i x_i", block=False).count("\\")
    0
    """
    told = " ".join(tex.split())
    if len(re.findall(r"(?<!\\)\{", told)) != len(re.findall(r"(?<!\\)\}", told)):
        raise ValueError(f"no MathML for {tex!r}: braces do not match")
    for pattern, instead in _SAY:
        told = pattern.sub(instead, told)
    if r"\\" in told and r"\begin" not in told:
        told = rf"\begin{{aligned}}{told}\end{{aligned}}"
    try:
        made = ElementTree.fromstring(convert(told, display="block" if block else "inline"))
    except Exception as error:
        raise ValueError(f"no MathML for {tex!r}: {error!r}") from error
    _tidy(made)
    text = ElementTree.tostring(made, encoding="unicode").replace("ns0:", "").replace(":ns0", "")
    if "\\" in text:
        raise ValueError(
            f"no MathML for {re.findall(r'.[a-zA-Z]*', text[text.index(chr(92)) :])[0]} in {tex!r}"
        )
    return text


def _tidy(parent: ElementTree.Element) -> None:
    """Limits under max and min, no space around bars, signs close to their number, space after log."""
    children = list(parent)
    for at, child in enumerate(children):
        before = children[at - 1] if at else None
        after = children[at + 1] if at + 1 < len(children) else None
        text = child.text or ""
        if child.tag == _SPACE + "msub" and len(child) and child[0].text in _UNDER:
            child.tag = _SPACE + "munder"
            child[0].set("movablelimits", "true")
        if text in _RELATIONS:
            child.tag = _SPACE + "mo"
        if child.tag == _SPACE + "mo":
            if text in _UNDER:
                child.text = _UNDER[text]
                child.set("lspace", "0.1667em" if before is not None else "0")
                child.set("rspace", "0" if _is(after, "(") else "0.1667em")
            elif text == "|":
                child.attrib |= {"lspace": "0", "rspace": "0"}
            elif text == "\N{MINUS SIGN}" and before is not None and before.tag == _SPACE + "mo":
                if before.text not in _CLOSE:
                    child.set("form", "prefix")
        if child.tag == _SPACE + "mi" and text in _FUNCTIONS and after is not None and not _is(after, "("):
            gap = ElementTree.Element(_SPACE + "mspace", {"width": "0.1667em"})
            parent.insert(list(parent).index(child) + 1, gap)
        _tidy(child)


def _is(element: ElementTree.Element | None, text: str) -> bool:
    return element is not None and element.text == text


def _visit(self: Any, node: nodes.Element, block: bool) -> None:
    try:
        made = mathml(node.astext(), block=block)
    except ValueError as error:
        _LOG.warning("%s", error, location=node)
        made = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="formula">{made}</div>' if block else made)
    raise nodes.SkipNode


def _inline(self: Any, node: nodes.Element) -> None:
    _visit(self, node, block=False)


def _block(self: Any, node: nodes.Element) -> None:
    _visit(self, node, block=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register as the math renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
