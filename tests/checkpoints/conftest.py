"""Components of "another package": registered for one test, then taken off the index again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenops import Pipeline, Prune, register
from tokenops.integrations.checkpoints import save
from tokenops.registry import unregister


class Score(nn.Module):
    """A scorer with parameters, a buffer, and arguments of every kind that can be written."""

    def __init__(self, dim: int, hidden: int | None = None, *bounds: float, **extra: Any) -> None:
        super().__init__()
        self.dim, self.hidden, self.bounds, self.extra = dim, hidden, bounds, extra
        self.proj = nn.Linear(dim, hidden or dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).mean(-1)


class Best(nn.Module):
    """A selector around one scorer or several."""

    def __init__(
        self, scorer: Any, keep: float | int | None = None, relax: Any = None, others: Sequence[Any] = ()
    ) -> None:
        super().__init__()
        self.scorer, self.keep, self.relax = scorer, keep, relax
        self.others = nn.ModuleList(others) if others else others

    def forward(self, x: Tensor) -> Tensor:
        return self.scorer(x)


class Plain:
    """A selector without parameters that is no module."""

    def __init__(self, keep: float) -> None:
        self.keep = keep

    def __call__(self, x: Tensor) -> Tensor:
        return x


class Forgetful(nn.Module):
    """Keeps no attribute for its constructor argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)

    forward = Best.forward


class Shifting(nn.Module):
    """Keeps another value than it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width + 1

    forward = Best.forward


def soften(scores: Tensor, k: int, *, tau: float = 1.0) -> Tensor:
    """A relaxation."""
    return torch.sigmoid(scores / tau)


@pytest.fixture
def parts() -> Iterator[SimpleNamespace]:
    """The components, registered."""
    for kind, made in KINDS:
        register(kind, sample=lambda: None)(made)
    yield SimpleNamespace(
        Score=Score, Best=Best, Plain=Plain, Forgetful=Forgetful, Shifting=Shifting, soften=soften
    )
    for kind, made in KINDS:
        unregister(kind, made.__name__)


@pytest.fixture
def pipeline(parts: SimpleNamespace) -> Pipeline:
    """A pipeline of them with random weights."""
    torch.manual_seed(3)
    return Pipeline(after_projector=Prune(parts.Best(parts.Score(6, 4), 0.2, parts.soften)))


@pytest.fixture
def folder(pipeline: Pipeline, tmp_path: Path) -> Path:
    """Where it was saved."""
    save(pipeline, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, Any, tuple[str, ...]]]]:
    """Serve a local folder as a hub repository; returns the list of what is asked for."""

    def serve(folder: Any) -> list[tuple[str, Any, tuple[str, ...]]]:
        import huggingface_hub

        asked: list[tuple[str, Any, tuple[str, ...]]] = []

        def download(repo_id: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
            asked.append((repo_id, revision, tuple(allow_patterns)))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return serve


KINDS = (
    ("scorer", Score),
    ("selector", Best),
    ("selector", Plain),
    ("selector", Forgetful),
    ("selector", Shifting),
    ("relaxation", soften),
)
