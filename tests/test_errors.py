"""The one error: who, expected, got."""

from __future__ import annotations

import copy
import pickle

from tokenops import TokenOpsError


def test_three_facts() -> None:
    error = TokenOpsError("TopK", "keep must be in (0, 1]", -0.2)
    assert isinstance(error, ValueError)
    assert (error.who, error.expected, error.got) == ("TopK", "keep must be in (0, 1]", -0.2)
    assert str(error) == "TopK: keep must be in (0, 1], got -0.2"


def test_survives_copies_and_processes() -> None:
    error = TokenOpsError("a", "b", (1, 2))
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert str(twin) == str(error)
        assert twin.got == (1, 2)
