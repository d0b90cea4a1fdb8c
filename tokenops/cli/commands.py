"""The commands of the command line, one file each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from tokenops import __version__
from tokenops.cli import FAILED, INTERRUPTED, bench, calibrate, cite, demo, listing, show, train, visualize
from tokenops.errors import TokenOpsError

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


def _add(command: Callable[..., None], example: str, name: str | None = None) -> None:
    """One command: its help ends with an example and the exit codes; what breaks it off is told in a line."""

    @functools.wraps(command)
    def told(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except TokenOpsError as error:
            # what a part of the library refused is told as the command's own, too
            if error.who.startswith("tokenops"):
                raise
            whole = f"tokenops {name or command.__name__}: {error.who}"
            raise TokenOpsError(whole, error.expected, error.got) from error
        except torch.OutOfMemoryError as error:
            typer.echo(f"error: {str(error).splitlines()[0]}", err=True)
            raise typer.Exit(FAILED) from None

    first = " ".join((command.__doc__ or "").partition("\n\n")[0].split())
    app.command(name, epilog=f"{example} {_EXIT_CODES}", short_help=first)(told)


_add(demo.demo, demo.EXAMPLE)
_add(listing.list_components, listing.EXAMPLE, "list")
_add(show.show, show.EXAMPLE)
_add(bench.bench, bench.EXAMPLE)
_add(calibrate.calibrate, calibrate.EXAMPLE)
_add(train.train, train.EXAMPLE)
_add(visualize.visualize, visualize.EXAMPLE)
_add(cite.cite, cite.EXAMPLE)
