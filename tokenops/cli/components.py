"""The index of components, read for ``tokenops list``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

from tokenops.registry import Entry, registered

_HOMES = ("kernels", "selectors", "routers", "recipes")


@dataclass(frozen=True)
class Component:
    """One line of the list."""

    kind: str
    name: str
    module: str
    summary: str
    paper: str | None


def components() -> list[Component]:
    """Everything that is registered, recipes first.

    >>> [c.name for c in components() if c.kind == "recipe"][:2]
    ['alvts', 'cls_attention']
    """
    for name in _packages():
        importlib.import_module(name)
    lines = [
        _component(entry) for entry in registered() if entry.component.__module__.startswith("tokenops.")
    ]
    return sorted(lines, key=lambda line: (line.kind != "recipe", line.module, line.name.lower()))


def _packages() -> Iterator[str]:
    """The packages that register components; only packages, which load no optional library."""
    for home in (f"tokenops.{name}" for name in _HOMES):
        spec = importlib.util.find_spec(home)
        if spec is None:
            continue
        yield home
        for module in pkgutil.walk_packages(spec.submodule_search_locations, f"{home}."):
            if module.ispkg:
                yield module.name


def _component(entry: Entry) -> Component:
    about = inspect.getdoc(entry.component) or ""
    summary = " ".join(about.partition("\n\n")[0].split()).replace("``", "")
    # the package that exports it is what people import from
    module = entry.component.__module__
    while module.count(".") > 1 and hasattr(importlib.import_module(module.rpartition(".")[0]), entry.name):
        module = module.rpartition(".")[0]
    return Component(entry.kind, entry.name, module, summary, entry.paper)
