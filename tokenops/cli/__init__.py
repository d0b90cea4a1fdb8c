"""The command line, ``tokenops`` or ``python -m tokenops``; its packages come with ``tokenops[demo]``."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence

from tokenops.errors import TokenOpsError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: fine; could not be done; bad arguments or something not installed; Ctrl-C."""


def require(command: str, modules: Sequence[str], extra: str = "demo") -> None:
    """Check that the modules are installed, without importing them.

    Raises:
        TokenOpsError: one or more are not; the message names the extra.

    >>> require("tokenops", ["json", "nowhere"])
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: tokenops: the demo extra (pip install 'tokenops[demo]'), got no nowhere
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        expected = f"the {extra} extra (pip install 'tokenops[{extra}]')"
        raise TokenOpsError(command, expected, f"no {', '.join(missing)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (``sys.argv`` by default) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # formulas and names hold more than ASCII; a terminal without those characters shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        require("tokenops", ["typer", "rich"])
        from tokenops.cli.commands import app

        app(None if arguments is None else list(arguments), prog_name="tokenops")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else DONE if leaving.code is None else FAILED
    except TokenOpsError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE
