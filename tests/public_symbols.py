"""Everything public, as symbols: what is in an ``__all__`` or registered, and the members of its classes."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from public_names import entries, exports

from tokenops.registry import KINDS

# public by their place in the rules, though no package lists them
BESIDE = ("tokenops.budget.Budget", "tokenops.budget.keep_count", "tokenops.budget.keep_counts")


@dataclass(frozen=True)
class Symbol:
    """A public class or function, or a method or property of a class (``owner``)."""

    name: str
    value: Any
    owner: type | None = None
    paper: str | None = None
    kind: str | None = None

    @property
    def code(self) -> Any:
        """The function behind it, or the class."""
        value = getattr(self.value, "__func__", self.value)  # classmethod, staticmethod
        value = value.fget if isinstance(value, property) else value
        return inspect.unwrap(getattr(value, "func", value))  # cached_property, lru_cache

    @property
    def doc(self) -> str:
        """Its own docstring, as written: what a parent class says is not counted."""
        return inspect.cleandoc(getattr(self.code, "__doc__", None) or "")


@functools.cache
def symbols() -> tuple[Symbol, ...]:
    """Everything public, members after their classes."""
    registered = {id(e.component): e for kind in KINDS for e in entries(kind)}
    paths = {path: value for path, value in exports().items() if callable(value) and ours(value)}
    for path in BESIDE:
        module, _, name = path.rpartition(".")
        paths[path] = getattr(sys.modules[module], name)
    for entry in registered.values():
        if not any(value is entry.component for value in paths.values()):
            paths[f"{entry.component.__module__}.{entry.name}"] = entry.component
    found = []
    for path, value in sorted(paths.items()):
        entry = registered.get(id(value))
        found.append(Symbol(path, value, None, entry and entry.paper, entry and entry.kind))
        if inspect.isclass(value):
            found += [Symbol(f"{path}.{name}", member, value) for name, member in members(value)]
    return tuple(found)


def ours(value: Any) -> bool:
    """Whether the package defines it."""
    return str(getattr(value, "__module__", "")).startswith("tokenops")


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself, or a base of ours that is not public, defines."""
    public = set(map(id, exports().values()))
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is not cls and (not ours(base) or id(base) in public):
            continue
        for name, member in vars(base).items():
            wanted = isinstance(member, property | functools.cached_property | classmethod | staticmethod)
            wanted = wanted or inspect.isfunction(member)
            if wanted and not name.startswith("_") and name not in seen and ours(Symbol("", member).code):
                seen.add(name)
                yield name, member


def annotations(symbol: Symbol) -> list[str]:
    """The annotations of what goes in and comes out, as written."""
    code = symbol.code
    found = [code]
    if inspect.isclass(code):
        own = {**vars(code)}
        found = [
            own[name] for name in ("__init__", "forward", "__call__") if inspect.isfunction(own.get(name))
        ]
    given = [a for f in found for a in getattr(f, "__annotations__", {}).values()]
    return [a if isinstance(a, str) else getattr(a, "__forward_arg__", repr(a)) for a in given]


def tensors(symbol: Symbol) -> list[str]:
    """Annotations with a tensor in them."""
    return [a for a in annotations(symbol) if re.search(r"\bTensor\b", a)]


def can_raise(symbol: Symbol) -> bool:
    """Whether it raises TokenOpsError: itself, or through functions of ours that it calls by name."""
    code, owner = symbol.code, symbol.owner
    queue, seen = [(code, owner)], set()
    if inspect.isclass(code):
        queue = [
            (vars(code).get(name), code) for name in ("__init__", "__post_init__", "forward", "__call__")
        ]
    while queue:
        function, holder = queue.pop()
        if function in seen or not inspect.isfunction(function) or not ours(function):
            continue
        seen.add(function)
        itself, called = calls(function, holder)
        if itself:
            return True
        queue += called
    return False


@functools.cache
def calls(function: Any, owner: type | None) -> tuple[bool, list[tuple[Any, type | None]]]:
    """Whether a function says ``raise TokenOpsError``, and what it calls, with the class that has it."""
    if function.__code__.co_filename == "<string>":  # what a dataclass makes
        return False, []
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    nodes = [node for line in tree.body[0].body for node in ast.walk(line)]  # decorators ran long ago
    itself = any(
        isinstance(node, ast.Raise) and node.exc is not None and "TokenOpsError" in ast.unparse(node.exc)
        for node in nodes
    )
    names = _names(function, tree)
    called = [_called(node.func, names, owner) for node in nodes if isinstance(node, ast.Call)]
    found: list[tuple[Any, type | None]] = []
    for value, holder in called:
        value = inspect.unwrap(getattr(value, "__func__", value))
        if inspect.isclass(value) and ours(value):
            found += [(vars(value).get(name), value) for name in ("__init__", "__post_init__")]
        else:
            found.append((value, holder))
    return itself, found


def _names(function: Any, tree: ast.AST) -> dict[str, Any]:
    """What the names in a function mean, its own imports included."""
    function = inspect.unwrap(function)
    names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenops"):
            module = importlib.import_module(node.module or "")
            names |= {a.asname or a.name: getattr(module, a.name, None) for a in node.names}
    return names


def _called(target: ast.expr, names: dict[str, Any], owner: type | None) -> tuple[Any, type | None]:
    """What an expression that is called stands for, where a name says it."""
    match target:
        case ast.Name(id=name):
            return names.get(name), None
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if owner is not None:
            return inspect.getattr_static(owner, name, None), owner
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if inspect.isclass(names.get(name)):
            return inspect.getattr_static(names[name], attr, None), names[name]
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if inspect.ismodule(names.get(name)):
            return getattr(names[name], attr, None), None
    return None, None
