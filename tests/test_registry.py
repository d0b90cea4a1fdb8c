"""The index records, lists and refuses."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from tokenops import TokenOpsError, register, registered
from tokenops.registry import KINDS, unregister


@pytest.fixture
def listed() -> Iterator[Any]:
    @register("scorer", paper="arXiv:0000.00000")
    def newcomer(x: Any) -> Any:
        return x

    yield newcomer
    unregister("scorer", "newcomer")


def test_a_component_is_listed_and_unchanged(listed: Any) -> None:
    (entry,) = [e for e in registered("scorer") if e.name == "newcomer"]
    assert entry.component is listed
    assert entry.make() is listed
    assert (entry.kind, entry.paper) == ("scorer", "arXiv:0000.00000")
    assert listed(3) == 3


def test_samples_are_made_anew(listed: Any) -> None:
    class Thing:
        pass

    register("merger", sample=Thing)(Thing)
    try:
        (entry,) = [e for e in registered("merger") if e.name == "Thing"]
        assert isinstance(entry.make(), Thing)
        assert entry.make() is not entry.make()
    finally:
        unregister("merger", "Thing")


def test_sorted_by_kind_and_name() -> None:
    keys = [(e.kind, e.name) for e in registered()]
    assert keys == sorted(keys)
    assert {e.kind for e in registered()} <= set(KINDS)
    assert all(e.kind == "scorer" for e in registered("scorer"))


def test_defining_again_in_one_module_replaces(listed: Any) -> None:
    def newcomer(x: Any) -> Any:
        return x

    assert register("scorer")(newcomer) is newcomer
    assert [e.component for e in registered("scorer") if e.name == "newcomer"] == [newcomer]


def test_refusals(listed: Any) -> None:
    def newcomer(x: Any) -> Any:
        return x

    newcomer.__module__ = "somewhere.else"
    with pytest.raises(TokenOpsError, match="unused scorer name"):
        register("scorer")(newcomer)
    with pytest.raises(TokenOpsError, match="kind must be one of"):
        register("score")(newcomer)
    with pytest.raises(TokenOpsError, match="a class needs sample="):
        register("scorer")(type("Bare", (), {}))
    for nameless in (functools.partial(newcomer), 3):
        with pytest.raises(TokenOpsError, match="a class or function with a name"):
            register("scorer")(nameless)  # type: ignore[type-var]
    with pytest.raises(TokenOpsError, match="kind must be one of"):
        registered("scores")
    with pytest.raises(TokenOpsError, match="a registered scorer"):
        unregister("scorer", "nobody")
