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

    Raises:
        TokenOpsError: a folder that cannot be made or written to, or one that holds a pipeline or another
            config.json already.
    """

    def __init__(self, who: str, folder: Path) -> None:
        check_folder(folder, who)
        if (folder / "config.json").exists():
            raise TokenOpsError(who, "--out as a new folder", f"{folder}, which holds a config.json")
        self.who, self.folder = who, folder
        self.unfinished = folder / "unfinished"
        self.console = Console(stderr=True, highlight=False)

    @property
    def teller(self) -> RichTeller:
        """Progress on stderr."""
        from tokenops.cli.console import RichTeller

        return RichTeller(self.console)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Where Ctrl-C says how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            if self.unfinished.exists():
                self.console.print(
                    f"What is done is in {self.unfinished}; the same command goes on from there."
                )
            raise

    def same_run(self, settings: dict[str, Any], *, write: bool = True) -> None:
        """Compare what a run depends on with what was noted; ``write`` notes it the first time.

        Raises:
            TokenOpsError: the folder is of another run; what differs is named.
        """
        file = self.unfinished / "run.json"
        if not file.exists():
            if write:
                write_all({file: json.dumps(settings).encode()})
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        if other := sorted(n for n in {*found, *settings} if found.get(n) != settings.get(n)):
            expected = f"the run that is in {self.unfinished} (remove it to begin anew)"
            raise TokenOpsError(self.who, expected, f"another {', '.join(other)}")

    def finish(self, pipeline: Pipeline, report: dict[str, Any]) -> None:
        """Save the pipeline and report.json, and remove what was needed to go on."""
        from tokenops.integrations.checkpoints import save

        save(pipeline, self.folder)
        write_all({self.folder / "report.json": (json.dumps(report, indent=2) + "\n").encode()})
        shutil.rmtree(self.unfinished, ignore_errors=True)


def counted(teller: RichTeller, what: str, items: Sequence[A], make: Callable[[A], T]) -> Iterator[T]:
    """``make`` of every item, one at a time, with a bar that is gone before the last one is handed out."""
    with teller.waiting(what, len(items)) as step:
        for item in items[:-1]:
            yield make(item)
            step()
    yield from map(make, items[-1:])
