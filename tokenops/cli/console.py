"""The demo in a terminal: progress bars where it waits, answers as they come, the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from tokenops.demo.answering import Answer, Answered
from tokenops.demo.measuring import BATCH, Row

_ANSWER_WIDTH = 18


class RichTeller:
    """A :class:`~tokenops.demo.telling.Teller` that writes to a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.signs = ("\N{CHECK MARK}", "\N{BALLOT X}")
        if console.options.ascii_only:
            self.signs = ("ok", "wrong")

    @contextmanager
    def waiting(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A bar with steps, or a spinner if there is nothing to count; a plain line outside a terminal."""
        if not self.console.is_terminal:
            self.console.print(Text(f"{what} ...", style="dim"))
            yield lambda: None
            return
        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        counted = [BarColumn(), MofNCompleteColumn()] if total else []
        progress = Progress(*columns, *counted, TimeElapsedColumn(), console=self.console, transient=True)
        with progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

    def answered(self, number: int, answered: Answered) -> None:
        """The question and its truth, then one answer per budget."""
        if number == 1:
            heading = "VisionSelector answers with fewer and fewer visual tokens"
            self.console.print(Text(f"\n{heading}\n", style="bold"))
        question = answered.asked.question
        self.console.print(
            Text.assemble(
                f"  {number}. {question.text.replace(' ?', '?')}", ("   truth: ", "dim"), question.answer
            )
        )
        self.console.print(Text.assemble(" " * 5, *map(self._spoken, answered.answers)), soft_wrap=True)

    def measured(self, rows: Sequence[Row]) -> None:
        """The table."""
        self.console.print()
        self.console.print(_table(rows))

    def _spoken(self, answer: Answer) -> Text:
        sign, style = (self.signs[0], "green") if answer.right else (self.signs[1], "red")
        said = Text.assemble((f"{answer.keep:.0%} ", "dim"), (f"{answer.text or '(nothing)'} {sign}", style))
        said.pad_right(max(1, _ANSWER_WIDTH - len(said)))
        return said


def _table(rows: Sequence[Row]) -> Table:
    """One section per method; the best accuracy of every budget stands out."""
    best = {row.keep: max(r.accuracy for r in rows if r.keep == row.keep) for row in rows}
    table = Table(title=f"{rows[0].questions} held-out questions; prefill of {BATCH} at a time")
    table.add_column("method", no_wrap=True)
    for name in ("keep", "tokens", "accuracy", "prefill", "of full", "KV cache"):
        table.add_column(name, justify="right", no_wrap=True)
    for title, members in groupby(rows, key=lambda row: row.title):
        section = list(members)
        for row in section:
            stands_out = row.keep < 1 and row.accuracy == best[row.keep]
            table.add_row(
                title if row is section[0] else "",
                f"{row.keep:.0%}",
                str(row.tokens),
                Text(f"{row.accuracy:.1%}", style="bold green" if stands_out else ""),
                f"{row.prefill_ms:.1f} ms",
                f"{row.prefill_ratio:.2f}",
                f"{row.kv_bytes / 1024:.0f} KiB",
                end_section=row is section[-1],
            )
    return table
