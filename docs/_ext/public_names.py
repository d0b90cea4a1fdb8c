"""What the package offers, read from its modules and its registry: the reference is made from this."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tokenops
from tokenops.cli import components
from tokenops.registry import Entry, registered

HOME = Path(tokenops.__file__).parent


@functools.cache
def packages() -> tuple[ModuleType, ...]:
    """Every package, and the modules that stand beside them at the top."""
    names = ["tokenops"]
    for module in pkgutil.walk_packages([str(HOME)], "tokenops."):
        if module.ispkg or (module.name.count(".") == 1 and not module.name.endswith("__main__")):
            names.append(module.name)
    return tuple(importlib.import_module(name) for name in names)


@functools.cache
def exports() -> dict[str, Any]:
    """Public path -> object, for every name in an ``__all__``; the shortest path where there are several."""
    found: dict[int, tuple[str, Any]] = {}
    for module in sorted(packages(), key=lambda m: m.__name__.count(".")):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not name.startswith("__") and not inspect.ismodule(value):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(sorted(found.values(), key=lambda pair: pair[0]))


def path_of(value: Any) -> str | None:
    """The public path of an object, if it has one."""
    return next((path for path, known in exports().items() if known is value), None)


def find(name: str, near: str = "") -> str | None:
    """The public path that a name in a text or an annotation means; ``near`` is the module it stands in.

    >>> find("Selection.reduce"), find("tokenops.stages.Prune"), find("Tensor")
    ('tokenops.Selection.reduce', 'tokenops.Prune', None)
    """
    if name.startswith("tokenops."):
        module, _, rest = name.rpartition(".")
        while module and module not in sys.modules:
            module, _, before = module.rpartition(".")
            rest = f"{before}.{rest}"
        head, _, rest = rest.partition(".")
        path = path_of(getattr(sys.modules[module], head, None))
    else:
        head, _, rest = name.partition(".")
        paths = [path for path in exports() if path.rpartition(".")[2] == head]
        path = next((p for p in paths if p == f"{near}.{head}"), paths[0] if paths else None)
    return f"{path}.{rest}" if path and rest else path


def exists(name: str) -> bool:
    """Whether Python finds something under a dotted name, or a module of the package knows the word.

    >>> exists("collections.abc.Mapping"), exists("Tensor"), exists("tokenops.stages.Prun")
    (True, True, False)
    """
    value: Any = sys.modules.get(name.partition(".")[0])
    if value is None or "." not in name:
        return value is not None or name.partition(".")[0] in words()
    for place, part in enumerate(name.split(".")[1:], 2):
        if not hasattr(value, part):
            value = sys.modules.get(".".join(name.split(".")[:place]))
            if value is None:
                return False
        else:
            value = getattr(value, part)
    return True


def entries(kind: str) -> list[Entry]:
    """What the package itself registers under a kind."""
    packages()
    return [e for e in registered(kind) if e.component.__module__.startswith("tokenops.")]


def entry_path(entry: Entry) -> str:
    """Where a component is imported from."""
    return path_of(entry.component) or f"{entry.component.__module__}.{entry.name}"


def summary(value: Any) -> str:
    """First paragraph of a docstring; what is in it, or what it is another name for, without one."""
    if isinstance(value, Mapping):
        return f"Holds {', '.join(f'``{key!r}``' for key in value)}."
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return f"``{value}``"
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


trainable = components.trainable


def signals(entry: Entry) -> list[str]:
    """Signals that ``attach`` has to supply; those it can do without are in brackets."""
    return [name if must else f"({name})" for name, must in components.signals(entry).items()]


@functools.cache
def words() -> frozenset[str]:
    """Every name that a module of the package imports, defines or annotates with."""
    found: set[str] = set(dir(__builtins__) if isinstance(__builtins__, ModuleType) else __builtins__)
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found.update(_defined(node))
    return frozenset(found)


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


class _As:
    """Prints as the text it was given: what ``inspect`` shows of annotations and defaults."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _spoken(annotation: Any) -> str:
    """An annotation as text: the source's own where there is one."""
    if annotation is None or annotation is type(None):
        return "None"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> Any:
    """A default that Python can read back: functions and classes by their name."""
    return _As(value.__name__) if callable(value) and hasattr(value, "__name__") else value


def annotated(value: Any) -> tuple[str, str]:
    """Signature and result of a callable, with annotations as the source has them.

    >>> annotated(tokenops.Selection.from_mask)
    ("(keep: Bool[Tensor, 'b n'], k: int | None = None)", 'Selection')
    """
    signature = inspect.signature(value)
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    shown = []
    for p in parameters:
        if p.annotation is not p.empty:
            p = p.replace(annotation=_As(_spoken(p.annotation)))
        if p.default is not p.empty:
            p = p.replace(default=_default(p.default))
        shown.append(p)
    result = signature.return_annotation
    plain = inspect.isclass(value) or result is inspect.Signature.empty
    return str(inspect.Signature(shown)), "" if plain else _spoken(result)
