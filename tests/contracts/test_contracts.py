"""Every registered component keeps its kind's contract, and every public component is registered."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest

import tokenops.recipes
from tokenops.pipeline import Pipeline
from tokenops.registry import Entry, registered
from tokenops.signals import needs
from tokenops.testing import relaxation_gradients, relaxations, scorers, selectors
from tokenops.testing.drawing import Law, hold, signal
from tokenops.testing.kernels import reference_of

PACKAGES = (
    "tokenops.selectors",
    "tokenops.selectors.scorers",
    "tokenops.selectors.relaxations",
    "tokenops.kernels.rows",
    "tokenops.kernels.topk",
    "tokenops.recipes",
)
INDEX_ONLY = {"create", "list_recipes"}
for _package in PACKAGES:
    import_module(_package)


def _cases(kind: str, laws: tuple[Law, ...]) -> list[Any]:
    return [
        pytest.param(entry, law, id=f"{entry.name}-{law.__name__}")
        for entry in registered(kind)
        for law in laws
        if entry.component.__module__.startswith("tokenops.")
    ]


@pytest.mark.parametrize(("entry", "law"), _cases("scorer", scorers.LAWS))
def test_scorer(entry: Entry, law: Law) -> None:
    hold(law, entry.make(), maker=signal)


@pytest.mark.parametrize(("entry", "law"), _cases("relaxation", relaxations.LAWS))
def test_relaxation(entry: Entry, law: Law) -> None:
    hold(law, entry.make())


@pytest.mark.parametrize("entry", registered("relaxation"), ids=lambda e: e.name)
def test_relaxation_compiles(entry: Entry) -> None:
    relaxation_gradients.compiles(entry.make())


@pytest.mark.parametrize(("entry", "law"), _cases("selector", selectors.LAWS))
def test_selector(entry: Entry, law: Law) -> None:
    hold(law, entry.make(), maker=signal)


@pytest.mark.parametrize("entry", registered("kernel"), ids=lambda e: e.name)
def test_kernel_has_a_reference(entry: Entry) -> None:
    ours, plain = inspect.signature(entry.component), inspect.signature(reference_of(entry.component))
    assert list(ours.parameters) == list(plain.parameters)


@pytest.mark.parametrize("entry", registered("recipe"), ids=lambda e: e.name)
def test_recipe_prints_and_names_its_needs(entry: Entry) -> None:
    pipeline = entry.make()
    assert isinstance(pipeline, Pipeline)
    assert repr(pipeline).startswith("Pipeline(after_projector=Prune(")
    for stage in pipeline.stages.values():
        assert set(needs(stage)) <= {"cls_attention", "grid", "mask", "segments"}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_components_are_registered(package: str) -> None:
    module = import_module(package)
    listed = [entry.component for entry in registered()]
    assert module.__all__ == sorted(module.__all__)
    for name in set(module.__all__) - INDEX_ONLY:
        assert getattr(module, name) in listed, f"@register is missing on {package}.{name}"


def test_every_recipe_is_exported() -> None:
    names = {entry.name for entry in registered("recipe")}
    assert names == set(tokenops.recipes.__all__) - INDEX_ONLY
