"""The commands of the command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenops import __version__
from tokenops.cli import INTERRUPTED, require
from tokenops.cli.components import Component, components

_MODEL = ("transformers", "tokenizers", "safetensors", "numpy", "PIL", "torchvision")
_DEMO_NEEDS = (*_MODEL, "sklearn", "matplotlib")
_EXIT_CODES = "Exit codes: 0 done, 1 could not be done, 2 bad arguments or not installed, 130 Ctrl-C."

app = typer.Typer(
    help="Visual-token reduction for vision-language models.",
    epilog=f"Start with: tokenops demo. {_EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenops {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(epilog=f"Example: tokenops demo --out pictures --questions 1000. {_EXIT_CODES}")
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the pictures and the table; made if needed.")
    ] = Path("tokenops-demo"),
    questions: Annotated[
        int, typer.Option(metavar="N", help="Measure accuracy on at least this many held-out questions.")
    ] = 240,
    seed: Annotated[int, typer.Option(metavar="S", help="Which held-out scenes to ask about.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the table as JSON; everything else goes to stderr.")
    ] = False,
) -> None:
    """A small trained model answers questions with 100, 30, 20 and 10 % of its visual tokens.

    The pocket model that ships with this package (a LLaVA of 1.3 million parameters, no download) is asked
    about handwritten digits it has never seen. VisionSelector answers a few questions aloud; then it is
    compared with random, uniform and CLS-attention selection: accuracy, tokens kept, prefill time beside
    that of all tokens, and KV-cache size. Writes tokenops-demo.png (kept tokens bright, dropped ones dark)
    and tokenops-demo.json. Takes about a minute on one CPU core.
    """
    require("tokenops demo", _DEMO_NEEDS)
    import torch
    from transformers.utils import logging

    from tokenops.cli.console import RichTeller
    from tokenops.demo.record import NOTE
    from tokenops.demo.run import Settings, run

    settings = Settings(out, questions, seed)
    logging.disable_progress_bar()
    # a model this small gains nothing from a second thread, and loses much to it on a busy machine
    torch.set_num_threads(1)
    console = Console(stderr=as_json, highlight=False)
    start = time.perf_counter()
    try:
        result = run(settings, RichTeller(console))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(result.json, nl=False)
    console.print(Padding(NOTE, (0, 1)))
    files = f"\n picture  {result.picture}\n layers   {result.layers}\n table    {result.table}"
    console.print(files, soft_wrap=True)
    console.print(f" {time.perf_counter() - start:.0f} seconds")


@app.command("list")
def list_components(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the recipes (whole methods) and the components they are built from.

    A recipe is a function that returns a pipeline to attach: tokenops.create("random", keep=0.2). Recipes
    come first; every name is listed under the module it is imported from.
    """
    found = components()
    if as_json:
        typer.echo(json.dumps([asdict(component) for component in found], indent=2))
        return
    Console(highlight=False).print(_listing(found))


def _listing(found: list[Component]) -> Table:
    """Names and what they do, under a heading for every module they are imported from."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for module, members in groupby(found, key=lambda component: component.module):
        table.add_row(Text(module, style="bold"), "")
        for c in members:
            paper = f"  {c.paper}" if c.paper else ""
            table.add_row(f"  {c.name}", Text.assemble(c.summary, (paper, "dim")))
        table.add_row("", "")
    return table
