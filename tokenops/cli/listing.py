"""``tokenops list``: what there is."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tokenops.cli.components import components
from tokenops.cli.plain import filled
from tokenops.registry import KINDS

EXAMPLE = "Example: tokenops list --kind scorer. Then: tokenops show NAME."


def list_components(
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"Only one kind: {', '.join(KINDS)}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the recipes (whole methods) and the components they are built from.

    A recipe is a function that returns a pipeline to attach: tokenops.create("random", keep=0.2). Recipes
    come first; every name is listed under the module it is imported from.
    """
    found = components(kind)
    if as_json:
        typer.echo(json.dumps([component.told() for component in found], indent=2))
        return
    console = Console(highlight=False)
    width = 2 + max(len(c.name) for c in found) + 2
    for number, (module, members) in enumerate(groupby(found, key=lambda component: component.module)):
        if number:
            console.print()
        console.print(Text(module, style="bold"))
        for c in members:
            about = f"{c.summary} {c.paper or ''}"
            told = filled(about, console.width, " " * width, f"  {c.name}".ljust(width))
            console.print(Text(told), soft_wrap=True)
