"""A component as JSON: the constructor call that builds it, read from attributes named like its arguments.

    {"component": "selector/TopK", "arguments": {"scorer": {...}, "keep": 0.2, "relax": {"component": ...}}}

Without ``arguments`` a node is the registered function itself, a function with ``arguments`` is a
``functools.partial`` of it. A name is ``kind/Name`` for a component of tokenops and ``module:Name`` for a
registered one of another package. A description names components; it never makes Python import anything.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.registry import registered
from tokenops.routers import LowRankAttention, Steps
from tokenops.signals import name_of
from tokenops.stages import Merge, Prune

PACKAGES = (
    "tokenops.selectors",
    "tokenops.selectors.mergers",
    "tokenops.selectors.scorers",
    "tokenops.selectors.relaxations",
    "tokenops.routers",
)
STAGES = (Pipeline, Prune, Merge)
DEPTH = 100  # lists and dicts inside each other; a pipeline takes about three for each component
SLOTS = {
    ("stage/Prune", "selector"): ("selector",),
    ("stage/Merge", "selector"): ("selector",),
    ("stage/Merge", "merger"): ("merger",),
    ("selector/TopK", "scorer"): ("scorer",),
    ("selector/TopK", "relax"): ("relaxation", "sampler"),
}
_ALSO = {"kernel/hard_topk": "relaxation"}
_VALUE = "a finite number, string, registered component, or a list or dict of these"
_NESTED = f"lists and components nested less than {DEPTH} deep"


def components() -> dict[str, Callable[..., Any]]:
    """Name in a description -> component: the stages and everything registered."""
    for package in PACKAGES:
        importlib.import_module(package)
    table: dict[str, Callable[..., Any]] = {f"stage/{stage.__name__}": stage for stage in STAGES}
    table |= {"routers/LowRankAttention": LowRankAttention, "routers/Steps": Steps}
    for entry in registered():
        made = entry.component
        own = made.__module__.partition(".")[0] == "tokenops"
        table[f"{entry.kind}/{entry.name}" if own else f"{made.__module__}:{made.__qualname__}"] = made
    return table


def describe(component: Any) -> dict[str, Any]:
    """The constructor call that builds ``component``, as JSON values; a module met twice is described once.

    Raises:
        TokenOpsError: a component that is not registered, or an argument that no attribute of its name holds
            as a number, string, component, or a list or dict of these, not too deeply nested.

    >>> describe(Pipeline())
    {'component': 'stage/Pipeline', 'arguments': {'stages': {'dict': {}}}}
    """
    names = {id(made): name for name, made in components().items()}
    try:
        description = _Describe(names).value(component, "describe", "component", "")
    except RecursionError as error:
        raise TokenOpsError("describe", _NESTED, "a value that contains itself or too many others") from error
    _check_depth("describe", description)
    return description


def _check_depth(who: str, description: Any) -> None:
    level = [description]
    for _ in range(DEPTH):
        level = [
            value
            for node in level
            if isinstance(node, dict | list)
            for value in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise TokenOpsError(who, _NESTED, "more")


class _Describe:
    """One walk over a component: names of the known ones, paths of the modules met so far."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names, self.seen = names, dict[int, tuple[str, Any]]()

    def value(self, value: Any, who: str, argument: str, path: str) -> Any:
        if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, list | nn.ModuleList):
            return [self.value(v, who, argument, f"{path}.{i}") for i, v in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self.value(list(value), who, argument, path)}
        if isinstance(value, Mapping | nn.ModuleDict) and all(isinstance(key, str) for key in value):
            return {"dict": {k: self.value(v, who, argument, f"{path}.{k}") for k, v in value.items()}}
        if isinstance(value, type):
            raise TokenOpsError(who, f"{argument} as {_VALUE}", f"the class {name_of(value)}, no instance")
        if name := self.names.get(id(value)):
            return {"component": name}
        if isinstance(value, functools.partial) and id(value.func) in self.names and not value.args:
            name = self.names[id(value.func)]
            return {"component": name, "arguments": self.all(value.keywords, value.func, path)}
        if id(type(value)) in self.names:
            return self.instance(value, path)
        got = repr(value) if isinstance(value, float) else f"{name_of(value)} (register it with @register)"
        raise TokenOpsError(who, f"{argument} as {_VALUE}", got)

    def instance(self, value: Any, path: str) -> dict[str, Any]:
        if id(value) in self.seen:
            return {"same": self.seen[id(value)][0]}
        self.seen[id(value)] = path, value
        arguments: dict[str, Any] = {}
        for name in _parameters(type(value)):
            if not hasattr(value, name):
                raise TokenOpsError(
                    name_of(value), f"an attribute for its constructor argument {name}", "none"
                )
            arguments[name] = getattr(value, name)
        return {"component": self.names[id(type(value))], "arguments": self.all(arguments, value, path)}

    def all(self, arguments: Mapping[str, Any], owner: Any, path: str) -> dict[str, Any]:
        return {k: self.value(v, name_of(owner), k, f"{path}.{k}") for k, v in arguments.items()}


def build(description: Any) -> Any:
    """The component of a description.

    Raises:
        TokenOpsError: a component that is unknown, whose package is not imported or that does not fit its
            place, unfit arguments, or a description nested too deeply.

    >>> build(describe(Pipeline()))
    Pipeline()
    """
    _check_depth("load", description)
    return _Build(components()).value(description, "")


class _Build:
    """One walk over a description: the known components, and what was built at each path."""

    def __init__(self, known: Mapping[str, Callable[..., Any]]) -> None:
        self.known, self.built = known, dict[str, Any]()
        self.kinds: dict[int, set[str]] = {}
        for entry in registered():
            self.kinds.setdefault(id(entry.component), set()).add(entry.kind)
        for name, kind in _ALSO.items():
            self.kinds.setdefault(id(known.get(name)), set()).add(kind)

    def value(self, node: Any, path: str) -> Any:
        if isinstance(node, list):
            return [self.value(v, f"{path}.{i}") for i, v in enumerate(node)]
        if not isinstance(node, dict):
            return node
        match node:
            case {"tuple": list(items)}:
                return tuple(self.value(items, path))
            case {"dict": dict(items)}:
                return {k: self.value(v, f"{path}.{k}") for k, v in items.items()}
            case {"same": str(first)} if first in self.built:
                return self.built[first]
            case {"component": str(name), "arguments": dict(arguments)}:
                given = {k: self.value(v, f"{path}.{k}") for k, v in arguments.items()}
                made = self.component(name)
                for argument, value in given.items():
                    self.check_slot(name, argument, value)
                self.built[path] = _call(name, made, given)
                return self.built[path]
            case {"component": str(name)} if "arguments" not in node:
                made = self.component(name)
                if isinstance(made, type):
                    raise TokenOpsError("load", f'"arguments" of the class {name} at pipeline{path}', "none")
                return made
        raise TokenOpsError("load", f"a component, tuple or dict at pipeline{path}", f"keys {sorted(node)}")

    def component(self, name: str) -> Callable[..., Any]:
        if name in self.known:
            return self.known[name]
        module, foreign, _ = name.partition(":")
        if foreign:
            raise TokenOpsError("load", f"import {module} first: it defines {name}", "no such component yet")
        raise TokenOpsError("load", "a component of this version of tokenops", repr(name))

    def check_slot(self, owner: str, argument: str, value: Any) -> None:
        """A component of the kind that the argument of ``owner`` takes; no other value is looked at here."""
        wanted = SLOTS.get((owner, argument))
        if wanted is None or not callable(value):
            return
        made = value.func if isinstance(value, functools.partial) else value
        plain = id(made) in self.kinds
        kinds = self.kinds.get(id(made if plain else type(made)), set())
        if not kinds.intersection(wanted):
            got = f"{name_of(made)} ({', '.join(sorted(kinds)) or 'none of the kinds'})"
            raise TokenOpsError(owner, f"a {' or '.join(wanted)} as {argument}", got)
        if plain and "selector" in wanted and "mask" not in (taken := inspect.signature(value).parameters):
            if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                got = f"{name_of(made)} of ({', '.join(taken)})"
                raise TokenOpsError(owner, f"a selector that takes (x, *, mask) as {argument}", got)


def _call(name: str, component: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Construct a class, bind a function; ``*args`` and ``**kwargs`` are unfolded from their own names."""
    if not isinstance(component, type):
        try:
            inspect.signature(component).bind_partial(**arguments)
        except (TypeError, ValueError) as error:
            raise TokenOpsError(name, "arguments it takes", f"{arguments} ({error})") from error
        return functools.partial(component, **arguments)
    parameters = _parameters(component)
    if unknown := sorted(set(arguments) - set(parameters)):
        raise TokenOpsError(name, f"arguments {', '.join(parameters) or 'none'}", ", ".join(unknown))
    bound = inspect.BoundArguments(inspect.Signature(list(parameters.values())), arguments)  # type: ignore[arg-type]
    try:
        return component(*bound.args, **bound.kwargs)
    except TokenOpsError:
        raise
    except Exception as error:
        raise TokenOpsError(name, "arguments its constructor takes", f"{arguments} ({error})") from error


def _parameters(made: type) -> dict[str, inspect.Parameter]:
    if made.__init__ in (nn.Module.__init__, object.__init__):
        return {}
    return dict(inspect.signature(made).parameters)
