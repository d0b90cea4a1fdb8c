"""How the demo speaks: it calls a teller, and the command line's one writes to the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tokenops.demo.answering import Answered
from tokenops.demo.measuring import Row


class Teller(Protocol):
    """Receives what happens, in order."""

    def waiting(self, what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Something that takes a while; call the result once for each of ``total`` steps."""
        ...

    def answered(self, number: int, answered: Answered) -> None:
        """A question, its truth and the answers."""
        ...

    def measured(self, rows: Sequence[Row]) -> None:
        """The finished table."""
        ...


class Silent:
    """Says nothing.

    >>> with Silent().waiting("a while", 3) as step:
    ...     step()
    """

    @contextmanager
    def waiting(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Steps that nobody sees."""
        yield lambda: None

    def answered(self, number: int, answered: Answered) -> None:
        """Nothing."""

    def measured(self, rows: Sequence[Row]) -> None:
        """Nothing."""
