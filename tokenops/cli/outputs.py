"""What a long command writes: a finished pipeline with its report, and until then a place to go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from tokenops.demo.files import check_folder, write_all
from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    from tokenops.cli.console import RichTeller
    from tokenops.pipeline import Pipeline

T = TypeVar("T")
A = TypeVar("A")


class Output:
    """The folder of a command: nothing is written at first, and a finished pipeline is never replaced.

    ``settings`` are what the run depends on. They wait in DIR/unfinished/run.json, beside the command's name,
    so that only the same command with the same settings goes on from there and removes it in the end.

    Raises:
        TokenOpsError: a folder that cannot be made or written to, one that holds a pipeline or another
            config.json already, or what another run left unfinished; what differs is named.
    """

    def __init__(self, who: str, folder: Path, settings: dict[str, Any]) -> None:
        check_folder(folder, who)
        if (folder / "config.json").exists():
            raise TokenOpsError(who, "--out as a new folder", f"{folder}, which holds a config.json")
        self.who, self.folder, self.new = who, folder, not folder.exists()
        self.unfinished = folder / "unfinished"
        self.console = Console(stderr=True, highlight=False)
        self._run, self._note = {"command": who} | settings, self.unfinished / "run.json"
        self._noted = False
        self._check()

    @property
    def teller(self) -> RichTeller:
        """Progress on stderr."""
        from tokenops.cli.console import RichTeller

        return RichTeller(self.console)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Where Ctrl-C says how to go on; where nothing is done yet, nothing is left."""
        try:
            yield
        except BaseException as error:
            left = self._clear()
            if left and isinstance(error, KeyboardInterrupt):
                self.console.print(
                    f"What is done is in {self.unfinished}; the same command goes on from there."
                )
            raise

    def begin(self) -> None:
        """Note the run, before the first of its files.

        Raises:
            TokenOpsError: another run began meanwhile.
        """
        self._check()
        if not self._note.exists():
            write_all({self._note: json.dumps(self._run).encode()})
            self._noted = True

    def finish(self, pipeline: Pipeline, report: dict[str, Any]) -> None:
        """Save the pipeline and report.json, and remove what was needed to go on."""
        from tokenops.integrations.checkpoints import save

        self._check()
        save(pipeline, self.folder)
        write_all({self.folder / "report.json": (json.dumps(report, indent=2) + "\n").encode()})
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _check(self) -> None:
        """Only this run's files, or none, are in the folder for what is unfinished."""
        if not self.unfinished.exists() or (self.unfinished.is_dir() and not any(self.unfinished.iterdir())):
            return
        try:
            found = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            expected = f"--out as a folder without {self.unfinished.name!r}, where an unfinished run would go"
            raise TokenOpsError(self.who, expected, f"{self.unfinished}, which is of no run")
        names = sorted({*found, *self._run})
        if other := [name for name in names if found.get(name) != self._run.get(name)]:
            expected = f"the run that is in {self.unfinished} (remove it to begin anew)"
            got = "command" if "command" in other else ", ".join(other)
            raise TokenOpsError(self.who, expected, f"another {got}")

    def _clear(self) -> bool:
        """Remove the note of a run that did no more than that; whether anything of a run is left."""
        if self._noted and len(list(self.unfinished.iterdir())) == 1:
            self._note.unlink()
            self.unfinished.rmdir()
            if self.new and not any(self.folder.iterdir()):
                self.folder.rmdir()
        return self.unfinished.exists()


def counted(teller: RichTeller, what: str, items: Sequence[A], make: Callable[[A], T]) -> Iterator[T]:
    """``make`` of every item, one at a time, with a bar that is gone before the last one is handed out."""
    with teller.waiting(what, len(items)) as step:
        for item in items[:-1]:
            yield make(item)
            step()
    yield from map(make, items[-1:])
