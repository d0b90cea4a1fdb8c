"""``tokenops cite``: BibTeX of the library and of the papers behind what was used."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenops import __version__
from tokenops.cli.components import find
from tokenops.errors import TokenOpsError
from tokenops.registry import Entry

WHO = "tokenops cite"
EXAMPLE = "Example: tokenops cite fastv my-pipeline >> paper.bib."
_ID = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})")


def cite(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Names of 'tokenops list', or folders with a saved pipeline."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of {name, arxiv, bibtex} as JSON.")
    ] = False,
) -> None:
    """Print BibTeX: tokenops itself, and the papers behind recipes, components or saved pipelines.

    A recipe cites its own paper and those of the components in it; a folder that tokenops.save wrote, those
    of everything in that pipeline. Each paper comes once.
    """
    entries = [{"name": "tokenops", "arxiv": None, "bibtex": software()}]
    seen: set[str] = set()
    for name in dict.fromkeys(names or ()):
        for paper in _papers(name):
            if paper not in seen:
                entries.append({"name": name, "arxiv": paper, "bibtex": bibtex(paper)})
                seen.add(paper)
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
    else:
        typer.echo("\n\n".join(str(e["bibtex"]) for e in entries))


def software() -> str:
    """The library itself.

    >>> print(software().splitlines()[0])
    @software{tokenops,
    """
    fields = {
        "title": "{tokenops}: Exact, Composable Visual-Token Reduction for Vision-Language Models",
        "author": "{tokenops contributors}",
        "version": __version__,
        "license": "MIT",
    }
    return "@software{tokenops,\n" + ",\n".join(f"  {k} = {{{v}}}" for k, v in fields.items()) + "\n}"


def bibtex(paper: str) -> str:
    """The entry of an arXiv number; number and address alone where the library knows no more.

    >>> print(bibtex("2606.00000"))
    @misc{arxiv:2606.00000,
      eprint = {2606.00000},
      archivePrefix = {arXiv},
      url = {https://arxiv.org/abs/2606.00000}
    }
    """
    for entry in files("tokenops.cli").joinpath("papers.bib").read_text(encoding="utf-8").split("\n\n"):
        if f"eprint = {{{paper}}}" in entry:
            return entry.strip()
    fields = {"eprint": paper, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{paper}"}
    return f"@misc{{arxiv:{paper},\n" + ",\n".join(f"  {k} = {{{v}}}" for k, v in fields.items()) + "\n}"


def papers(component: Any, paper: str | None = None) -> list[str]:
    """ArXiv numbers of a component: that of its registration, then those its reference names.

    >>> from tokenops.recipes import divprune
    >>> papers(divprune)
    ['2503.02175']
    """
    about = [p for p in (inspect.getdoc(component) or "").split("\n\n") if p.startswith("Reference")]
    return list(dict.fromkeys(_ID.findall(" ".join([paper or "", *about]))))


def _papers(name: str) -> Iterator[str]:
    if Path(name).is_dir():
        yield from _of_folder(Path(name))
        return
    for component in find(WHO, name):
        yield from _of_entry(component.entry)


def _of_entry(entry: Entry) -> Iterator[str]:
    """A component's own; a recipe's, and those of what it is made of."""
    yield from papers(entry.component, entry.paper)
    if entry.kind == "recipe":
        from tokenops.integrations.describe import describe

        yield from _of_description(describe(entry.make()))


def _of_folder(folder: Path) -> Iterator[str]:
    file = folder / "config.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise TokenOpsError(
            WHO, f"a pipeline that tokenops.save wrote in {folder}", "no config.json"
        ) from None
    except ValueError as error:
        raise TokenOpsError(WHO, f"JSON in {file}", error) from None
    if not isinstance(description, dict) or description.get("format") != "tokenops":
        raise TokenOpsError(WHO, f"a pipeline that tokenops.save wrote in {folder}", "another config.json")
    yield from _of_description(description)


def _of_description(description: Any) -> Iterator[str]:
    """Papers of every component that a saved description names."""
    from tokenops.integrations.describe import components

    table = components()
    registered = {id(e.component): e.paper for e in _entries()}
    for name in _names(description):
        component = table.get(name)
        if component is None:
            typer.echo(f"{name} is not a component of tokenops: cite it yourself", err=True)
        else:
            yield from papers(component, registered.get(id(component)))


def _entries() -> Iterable[Entry]:
    from tokenops.registry import registered

    return registered()


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("component"), str):
            yield node["component"]
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _names(value)
