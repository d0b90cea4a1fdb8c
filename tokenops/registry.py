"""An index of the components, read by contract tests, documentation, benchmarks and citations.

It records; it never builds. Components are imported and called by name like any Python object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenops.errors import TokenOpsError

KINDS = ("scorer", "relaxation", "sampler", "selector", "merger", "router", "kernel", "recipe")
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered component: its kind, itself, its paper and a maker of a small sample instance."""

    kind: str
    component: Callable[..., Any]
    paper: str | None
    sample: Callable[[], Any] | None

    @property
    def name(self) -> str:
        """Public name of the component."""
        return self.component.__name__

    def make(self) -> Any:
        """A small instance for tests: ``sample()``, or the component itself when it is a plain function."""
        return self.component if self.sample is None else self.sample()


_ENTRIES: dict[tuple[str, str], Entry] = {}


def register(
    kind: str, *, paper: str | None = None, sample: Callable[[], Any] | None = None
) -> Callable[[C], C]:
    """Decorator: list a component under ``kind``; ``paper`` as ``"arXiv:2510.16598"``.

    Raises:
        TokenOpsError: unknown kind, a component without a name, a class without a ``sample``, or a name
            taken by another component.

    >>> @register("scorer")
    ... def first_feature(x):
    ...     return x[..., 0]
    >>> unregister("scorer", "first_feature")
    """

    def record(component: C) -> C:
        entry = Entry(kind, component, paper, sample)
        if kind not in KINDS:
            raise TokenOpsError("register", f"kind must be one of {', '.join(KINDS)}", repr(kind))
        if not isinstance(getattr(component, "__name__", None), str):
            raise TokenOpsError("register", "a class or function with a name", repr(component))
        if inspect.isclass(component) and sample is None:
            raise TokenOpsError("register", "a class needs sample=", entry.name)
        known = _ENTRIES.get((kind, entry.name))
        if known is not None and known.component.__module__ != component.__module__:
            raise TokenOpsError("register", f"an unused {kind} name", entry.name)
        _ENTRIES[kind, entry.name] = entry
        return component  # pyright: ignore[reportReturnType]

    return record


def unregister(kind: str, name: str) -> None:
    """Take a component off the index again (for tests and notebooks).

    Raises:
        TokenOpsError: nothing of that kind and name is registered.

    >>> unregister("scorer", "not_there")
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: unregister: a registered scorer, got 'not_there'
    """
    if _ENTRIES.pop((kind, name), None) is None:
        raise TokenOpsError("unregister", f"a registered {kind}", repr(name))


def registered(kind: str | None = None) -> tuple[Entry, ...]:
    """All entries, or those of one kind, sorted by kind and name.

    Raises:
        TokenOpsError: an unknown kind.

    >>> [(entry.name, entry.paper) for entry in registered("scorer")][:1]
    [('LearnedScorer', 'arXiv:2510.16598')]
    """
    if kind is not None and kind not in KINDS:
        raise TokenOpsError("registered", f"kind must be one of {', '.join(KINDS)}", repr(kind))
    return tuple(e for key, e in sorted(_ENTRIES.items()) if kind in (None, key[0]))
