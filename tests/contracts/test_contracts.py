"""Every registered component keeps its kind's contract, and every public component is registered."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest

import tokenops.recipes
from tokenops.pipeline import Pipeline
from tokenops.registry import Entry, registered
from tokenops.routers import from_layer, per_layer
from tokenops.routers.route import Route
from tokenops.selectors.scorers import feature_norm
from tokenops.signals import SIGNALS, needs
from tokenops.testing import mergers, relaxation_gradients, relaxations, routers, scorers, selectors
from tokenops.testing.drawing import Law, hold, signal
from tokenops.testing.kernels import reference_of

PACKAGES = (
    "tokenops.selectors",
    "tokenops.selectors.mergers",
    "tokenops.selectors.scorers",
    "tokenops.selectors.relaxations",
    "tokenops.kernels.attention",
    "tokenops.kernels.rows",
    "tokenops.kernels.topk",
    "tokenops.recipes",
    "tokenops.routers",
)
INDEX_ONLY = {
    "Choice",
    "Curve",
    "LowRankAttention",
    "Schedule",
    "Segments",
    "Steps",
    "Units",
    "allocate",
    "attention_scores",
    "constant",
    "create",
    "entmax15",
    "entmax_curve",
    "explain",
    "from_layer",
    "list_recipes",
    "log_balance",
    "mass_curve",
    "per_layer",
    "pyramid",
    "replay",
    "soft_topk_threshold",
    "sparsemax",
}
for _package in PACKAGES:
    import_module(_package)


# laws a component is known not to keep: (component, law) -> why; a strict xfail
EXCEPTIONS = {("entmax_topk", "complement"): "the curve is one-sided: zeros are sparse, ones are cut off"}


def _marks(entry: Entry, law: Law) -> list[pytest.MarkDecorator]:
    reason = EXCEPTIONS.get((entry.name, law.__name__))
    return [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else []


def _cases(kind: str, laws: tuple[Law, ...]) -> list[Any]:
    return [
        pytest.param(entry, law, id=f"{entry.name}-{law.__name__}", marks=_marks(entry, law))
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


@pytest.mark.parametrize(("entry", "law"), _cases("merger", mergers.LAWS))
def test_merger(entry: Entry, law: Law) -> None:
    hold(law, entry.make(), maker=signal)


@pytest.mark.parametrize(("entry", "law"), _cases("router", routers.LAWS))
def test_router(entry: Entry, law: Law) -> None:
    hold(law, entry.make(), maker=signal)


@pytest.mark.parametrize("fate", ["skip", "exit"])
@pytest.mark.parametrize("keep", [0.3, from_layer(2, 4), per_layer([None, 0.2, 1.0, 3, 0.5, 1])], ids=str)
def test_routes_of_every_schedule(keep: Any, fate: str) -> None:
    for law in routers.LAWS:
        hold(law, Route(feature_norm, keep, fate=fate), maker=signal)


@pytest.mark.parametrize("entry", registered("kernel"), ids=lambda e: e.name)
def test_kernel_has_a_reference(entry: Entry) -> None:
    ours, plain = inspect.signature(entry.component), inspect.signature(reference_of(entry.component))
    assert list(ours.parameters) == list(plain.parameters)


@pytest.mark.parametrize("entry", registered("recipe"), ids=lambda e: e.name)
def test_recipe_prints_and_names_its_needs(entry: Entry) -> None:
    pipeline = entry.make()
    assert isinstance(pipeline, Pipeline)
    assert repr(pipeline).startswith(("Pipeline(after_projector=", "Pipeline(layers=Route("))
    for stage in pipeline.stages.values():
        assert set(needs(stage)) <= set(SIGNALS)


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
