"""Hypothesis profiles, and the ``hf`` mark for tests of transformers models."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HF_FOLDERS = {"integrations", "training", "pocket", "checkpoints"}

# torch's first call in a process is slow, so no deadline. Fixed examples by default: a red test stays red.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", settings(**_COMMON, derandomize=True, max_examples=30))
settings.register_profile("ci", settings(**_COMMON, derandomize=True, max_examples=60, print_blob=True))
settings.register_profile("slow", settings(**_COMMON, max_examples=1000, print_blob=True))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


@pytest.fixture(scope="module")
def _thawing() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture
def frozen_heap(_thawing: None) -> None:
    """Collecting garbage is quick in tests that do it often: what was there before is left out of it."""
    gc.freeze()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes started here react to Ctrl-C, even where the tests run in the background and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in the folders that run transformers models."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.relative_to(here).parts[0] in HF_FOLDERS:
            item.add_marker(pytest.mark.hf)
