"""For every test and every example in a docstring: one thread, fixed seeds, no network."""

from __future__ import annotations

import os
import random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers for a test whichever tests ran before it."""
    random.seed(0)
    torch.manual_seed(0)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(0)  # noqa: NPY002 - libraries under test use the global generator


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    """What the examples in docstrings may use without importing it."""
    doctest_namespace["torch"] = torch
