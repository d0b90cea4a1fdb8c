"""``tokenops show``: what one recipe or component does, needs and takes."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tokenops.cli.components import Component, find, home, signals, trainable
from tokenops.cli.plain import filled, inline, paragraphs
from tokenops.integrations.families import FAMILIES
from tokenops.signals import SIGNALS

WHO = "tokenops show"
EXAMPLE = "Example: tokenops show visionzip. Names: tokenops list."
_ATTENTION = ("cls_attention", "received_attention", "vision_keys")
_MODEL = "model, processor = tokenops.pocket.load()  # or your own, by from_pretrained"
_ATTACH = """\
with tokenops.attach(model, pipeline) as handle:
    model.generate(**inputs, max_new_tokens=5)
print(handle.trace)"""
_INPUTS = """\
scene = tokenops.pocket.scenes(1, "heldout", seed=1)[0]
inputs = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")"""
# how to call the recipes that want more of a model than a budget
_CALLS = {
    "alvts": (
        "factors = tokenops.integrations.low_rank_factors(model, rank=8)  # better: tokenops calibrate",
        "alvts(factors, keep=0.2)",
    ),
    "pyramiddrop": ("", "pyramiddrop((0.5, 0.25), layers=(1, 2))"),
    "visionselector": (
        "scorer = LearnedScorer(model.config.text_config.hidden_size)  # then train it: tokenops train",
        "visionselector(scorer, keep=0.2)",
    ),
}


@dataclass(frozen=True)
class Argument:
    """One parameter: its default as code, None if it has to be given, and what the docstring says."""

    name: str
    annotation: str
    default: str | None
    about: str


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of 'tokenops list'; kind/name if it means several.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list, one object for each component of that name.")
    ] = False,
) -> None:
    """Show what a recipe or component does: formula, shapes, arguments, needs, paper and an example.

    Needs are the signals that the model has to supply, beside the families of models that can. For a recipe
    the pipeline it builds is printed as code; the example runs as it stands, on the model that ships.
    """
    found = find(WHO, name)
    if as_json:
        typer.echo(json.dumps([told(component) for component in found], indent=2))
        return
    console = Console(highlight=False)
    for number, component in enumerate(found):
        if number:
            console.print()
        _print(console, component)


def told(component: Component) -> dict[str, Any]:
    """Everything about a component, as JSON values."""
    entry = component.entry
    about, sections = _sections(component)
    needed = signals(entry)
    return component.told() | {
        "description": "\n\n".join(about[1:]),
        "sections": sections,
        "arguments": [vars(argument) for argument in arguments(component)],
        "needs": {n: {"required": must, "what": SIGNALS[n]} for n, must in needed.items()},
        "families": families([n for n, must in needed.items() if must]),
        "trainable": trainable(entry),
        "pipeline": repr(entry.make()) if entry.kind == "recipe" else None,
        "example": example(component),
    }


def arguments(component: Component) -> list[Argument]:
    """The parameters, with their defaults and the text of the docstring's Args section."""
    try:
        parameters = inspect.signature(component.entry.component).parameters.values()
    except ValueError:
        return []
    texts = _arguments(component)
    found = []
    for p in parameters:
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = None if p.default is p.empty else _code(p.default)
        kind = "" if p.annotation is p.empty else str(p.annotation)
        found.append(Argument(star + p.name, kind, default, texts.get(p.name, "")))
    return found


def families(required: list[str]) -> dict[str, list[str]]:
    """Families of models that can give these signals -> the vision towers with which they can.

    An empty list of towers: with any. Layers of the language model give theirs in every family.

    >>> families(["received_attention"])["llava"]
    ['siglip_vision_model']
    """
    wanted = [name for name in required if name in _ATTENTION]
    if not wanted:
        return {name: [] for name in FAMILIES}
    able: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        for kind, tower in family.towers.items():
            if all(s == "vision_keys" or tower.cls == (s == "cls_attention") for s in wanted):
                able.setdefault(name, []).append(kind)
    return able


def example(component: Component) -> str:
    """Code to paste: for a recipe a whole run on the model that ships, else the docstring's doctest."""
    if component.kind != "recipe":
        found = doctest.DocTestParser().get_examples(_doc(component))
        source = textwrap.dedent("".join(e.source for e in found if not e.exc_msg)).strip()
        return "\n".join([*_imports(component, source), "", source])
    name = component.name
    before, call = _CALLS.get(name, ("", f"{name}(keep=0.2)"))
    imports = ["import tokenops", "import tokenops.pocket", f"from {component.module} import {name}"]
    if "LearnedScorer" in before:
        imports.append("from tokenops.selectors.scorers import LearnedScorer")
    made = [line for line in (before, f"pipeline = {call}") if line]
    return "\n".join([*imports, "", _MODEL, _INPUTS, *made, _ATTACH])


def _imports(component: Component, source: str) -> list[str]:
    """What a doctest finds in its module and code elsewhere has to import; torch comes first."""
    here = vars(sys.modules[component.entry.component.__module__])
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    lines = {f"from {component.module} import {component.name}"}
    for name in names:
        value = here.get(name)
        if inspect.ismodule(value):
            lines.add(f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}")
        elif hasattr(value, "__module__") and hasattr(value, "__name__"):
            lines.add(f"from {home(value)} import {name}")
    if "torch" in names:
        lines.add("import torch")
    return sorted(lines, key=lambda line: (line.startswith("from"), line))


def _code(value: Any) -> str:
    """A default as it would be written."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return getattr(value, "__name__", None) or repr(value)


def _doc(component: Component) -> str:
    made = component.entry.component
    # a class without a docstring would show that of its base
    return inspect.cleandoc(made.__doc__ or "")


def _sections(component: Component) -> tuple[list[str], dict[str, str]]:
    """The paragraphs above, and the named ones below: Shapes, Returns, Raises, Reference."""
    about, named = [], {}
    for block in paragraphs(_doc(component)):
        head, colon, rest = block.partition(":")
        if colon and re.fullmatch(r"Args|Shapes|Returns|Raises|Reference|Attributes", head):
            named[head] = textwrap.dedent(rest.strip("\n")).strip()
        else:
            about.append(block)
    named.pop("Args", None)
    return about, named


def _arguments(component: Component) -> dict[str, str]:
    """Name -> text of the Args section."""
    found: dict[str, str] = {}
    for block in _doc(component).split("\n\n"):
        if not block.startswith("Args:"):
            continue
        for names, text in re.findall(r"^    ([\w, *]+): (.*(?:\n {5,}.*)*)", block, re.MULTILINE):
            for name in names.split(","):
                found[name.strip(" *")] = inline(" ".join(text.split()))
    return found


def _print(console: Console, component: Component) -> None:
    about, sections = _sections(component)
    paper = f"  {component.paper}" if component.paper else ""
    path = f"{component.module}.{component.name}"
    console.print(Text.assemble((path, "bold"), (f"  {component.kind}{paper}", "dim")), soft_wrap=True)
    for block in about:
        console.print()
        _block(console, block)
    if takes := arguments(component):
        _heading(console, "Arguments")
        for argument in takes:
            kind = f": {argument.annotation}" if argument.annotation else ""
            default = "" if argument.default is None else f" = {argument.default}"
            _block(console, f"{argument.name}{kind}{default}", 2)
            _block(console, argument.about, 6)
    for name in ("Shapes", "Returns", "Raises", "Attributes"):
        if name in sections:
            _heading(console, name)
            _block(console, sections[name], 2)
    _needs(console, component)
    if component.kind == "recipe":
        _heading(console, "Builds, for example")
        _block(console, _wrapped(repr(component.entry.make())), 2, whole=True)
    if "Reference" in sections:
        _heading(console, "Reference")
        _block(console, sections["Reference"], 2)
    _heading(console, "Example")
    _block(console, example(component), 2, whole=True)


def _needs(console: Console, component: Component) -> None:
    needed = signals(component.entry)
    _heading(console, "Needs")
    for name, must in needed.items():
        _block(console, f"{name}{'' if must else ' (if there is one)'}: {SIGNALS[name]}", 2)
    if not needed:
        _block(console, "nothing but the tokens", 2)
    if component.kind in ("recipe", "scorer", "selector", "merger", "router"):
        able = families([name for name, must in needed.items() if must])
        told = [f"{name} ({', '.join(towers)})" if towers else name for name, towers in able.items()]
        _block(console, f"Families that can: {', '.join(told)}", 2)
    _block(console, f"Trainable: {'yes' if trainable(component.entry) else 'no, nothing in it learns'}", 2)


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _block(console: Console, text: str, indent: int = 0, *, whole: bool = False) -> None:
    """Prose wraps to the width of the terminal; code and formulas keep their lines."""
    margin = " " * indent
    if whole or text.startswith("    "):
        told = textwrap.indent(text, margin)
    else:
        told = filled(text, console.width, margin)
    if told:
        console.print(Text(told), soft_wrap=True)


def _wrapped(code: str, width: int = 96) -> str:
    """The repr of a pipeline, its stages on lines of their own if it is long."""
    if len(code) <= width:
        return code
    return re.sub(r"(?:(?<=\()|(?<=, ))(after_projector|layers)=", r"\n    \1=", code, count=2)
