"""The direction of imports, and who may know about other people's libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import source_imports as source

# From the ground up. A module imports its own layer and those below, never one above; a new top-level module
# or package needs a place here. `tokenops` itself (the curated names) stands above all of them.
LAYERS = (
    {"errors"},
    {"shapes", "registry", "budget", "signals", "hub", "eager"},
    {"kernels"},
    {"tokenmap"},
    {"selectors", "routers"},
    {"stages", "pipeline"},
    {"recipes"},
    {"integrations", "training"},
    {"analysis", "pocket"},
    {"demo", "testing"},
    {"cli", "__main__"},
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

CORE = {"torch", "einops"}
MAY_USE = {
    "kernels": {"triton", "xformers", "numpy"},
    "hub": {"safetensors", "huggingface_hub"},
    "testing": {"pytest", "hypothesis"},
}
ADAPTERS = {"integrations", "training", "pocket", "analysis", "demo", "cli", "__main__"}
NEVER_ON_IMPORT = {"transformers", "timm", "accelerate", "xformers", "triton", "sklearn", "matplotlib"}


def test_every_module_has_a_layer() -> None:
    units = {source.unit(module) for module in source.modules()} - {""}
    assert not units - set(HEIGHT), f"give it a place in LAYERS: {sorted(units - set(HEIGHT))}"


def test_nothing_imports_upwards() -> None:
    wrong = []
    for i in source.internal():
        importer, target = source.unit(i.importer), source.unit(i.target)
        version_only = target == "" and set(i.names) <= {"__version__"}
        if importer == "" or version_only:
            continue
        if target == "" or HEIGHT.get(target, 0) > HEIGHT.get(importer, len(LAYERS)):
            wrong.append(f"{i.where} imports {i.target}")
    assert not wrong, "\n".join(wrong)


def test_no_cycles_between_packages() -> None:
    uses: dict[str, set[str]] = {name: set() for name in HEIGHT}
    for i in source.internal():
        importer, target = source.unit(i.importer), source.unit(i.target)
        if importer and target and importer != target:
            uses.setdefault(importer, set()).add(target)
    while free := {name for name, targets in uses.items() if not targets & set(uses)}:
        uses = {name: targets for name, targets in uses.items() if name not in free}
    assert not uses, f"these import each other in a circle: {sorted(uses)}"


def test_the_mathematics_knows_torch_and_einops_only() -> None:
    wrong = []
    for i in source.third_party():
        unit = source.unit(i.importer)
        allowed = CORE | MAY_USE.get(unit, set())
        if unit not in ADAPTERS and i.top not in allowed and not i.typing:
            wrong.append(f"{i.where} imports {i.top}")
    assert not wrong, "\n".join(wrong)


def test_optional_libraries_are_imported_in_functions() -> None:
    """Below the adapters, even an allowed library waits until it is needed."""
    wrong = [
        f"{i.where} imports {i.top} at module level"
        for i in source.third_party()
        if source.unit(i.importer) not in ADAPTERS
        and i.top not in CORE | MAY_USE["testing"]
        and not (i.lazy or i.typing)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [m for m, path in source.modules().items() if path.name == "__init__.py"])
def test_importing_a_package_loads_no_model_library(package: str) -> None:
    """A file may subclass a Trainer callback at module level, as long as no package loads that file."""
    loaded = source.loaded_by(package)
    wrong = [
        f"{i.where} imports {i.top} (loaded by {loaded[i.importer]})"
        for i in source.third_party()
        if i.importer in loaded and i.top in NEVER_ON_IMPORT and not (i.lazy or i.typing)
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_loads_core_only() -> None:
    loaded = source.loaded_by("tokenops")
    wrong = [
        f"{i.where} imports {i.top} (loaded by {loaded[i.importer]})"
        for i in source.third_party()
        if i.importer in loaded and i.top not in CORE and not (i.lazy or i.typing)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_reader_sees_what_it_should(tmp_path: Path) -> None:
    code = """
from __future__ import annotations
import torch.nn as nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from transformers import Trainer
try:
    from . import near
except ImportError:
    pass
def f():
    from ..above import thing
"""
    path = tmp_path / "module.py"
    path.write_text(code)
    assert ast.parse(code)
    seen = {i.target: (i.lazy, i.typing) for i in source.imports_of("tokenops.a.module", path)}
    assert seen["torch.nn"] == (False, False)
    assert seen["transformers"] == (False, True)
    assert seen["tokenops.a"] == (False, False)
    assert seen["tokenops.above"] == (True, False)
