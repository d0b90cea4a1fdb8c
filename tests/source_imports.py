"""What every module of the package imports, read from its source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tokenops"


@dataclass(frozen=True)
class Import:
    """One imported module: ``lazy`` inside a function, ``typing`` under ``if TYPE_CHECKING``."""

    importer: str
    line: int
    target: str
    names: tuple[str, ...]
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        """First part of the imported name."""
        return self.target.split(".")[0]

    @property
    def where(self) -> str:
        """``module:line``, for messages."""
        return f"{self.importer}:{self.line}"


def unit(module: str) -> str:
    """The layer a module belongs to: ``tokenops.selectors.topk`` -> ``selectors``; the root -> ``""``."""
    return [*module.split("."), ""][1]


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement of the package."""
    return tuple(i for name, path in modules().items() for i in imports_of(name, path))


def third_party() -> tuple[Import, ...]:
    """The imports that need another distribution."""
    ours = sys.stdlib_module_names | {"tokenops"}
    return tuple(i for i in imports() if i.top not in ours)


def internal() -> tuple[Import, ...]:
    """Imports of one module of the package by another, at the submodule where the name is one."""
    found = []
    for i in imports():
        if i.top == "tokenops":
            below = [f"{i.target}.{n}" for n in i.names if f"{i.target}.{n}" in modules()]
            rest = tuple(n for n in i.names if f"{i.target}.{n}" not in modules())
            if rest or not below:
                found.append(Import(i.importer, i.line, i.target, rest, i.lazy, i.typing))
            found += [Import(i.importer, i.line, target, (), i.lazy, i.typing) for target in below]
    return tuple(found)


def imports_of(name: str, path: Path) -> list[Import]:
    """The import statements of one file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = list(_walk(tree, name, package, False, False))
    # `import tokenops` reaches what the file then reads from it
    used = [
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "tokenops"
    ]
    return [replace(i, names=tuple(used)) if (i.target, i.names) == ("tokenops", ()) else i for i in found]


def _walk(node: ast.AST, name: str, package: str, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name, child.lineno, alias.name, (), lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            base = package.rsplit(".", child.level - 1)[0] if child.level else ""
            target = ".".join(part for part in (base, child.module) if part)
            yield Import(name, child.lineno, target, tuple(a.name for a in child.names), lazy, typing)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _walk(ast.Module(child.body, []), name, package, lazy, True)
            yield from _walk(ast.Module(child.orelse, []), name, package, lazy, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, name, package, lazy or inside, typing)


def loaded_by(module: str) -> dict[str, str]:
    """Modules of the package that importing ``module`` runs -> the module that asked for each."""
    asked, queue = {module: module}, [module]
    while queue:
        current = queue.pop()
        wanted = [i.target for i in internal() if i.importer == current and not i.lazy and not i.typing]
        for target in wanted:
            parents = target.split(".")
            for prefix in (".".join(parents[: n + 1]) for n in range(len(parents))):
                if prefix in modules() and prefix not in asked:
                    asked[prefix] = current
                    queue.append(prefix)
    return asked
