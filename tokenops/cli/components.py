"""The index of components, read for ``tokenops list``, ``show`` and ``cite``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tokenops.cli.plain import inline
from tokenops.errors import TokenOpsError
from tokenops.registry import KINDS, Entry, registered
from tokenops.signals import SIGNALS, needs

_HOMES = ("kernels", "selectors", "routers", "recipes")


@dataclass(frozen=True)
class Component:
    """One line of the list; ``entry`` is what stands behind it."""

    kind: str
    name: str
    module: str
    summary: str
    paper: str | None
    entry: Entry = field(repr=False, compare=False)

    def told(self) -> dict[str, str | None]:
        """The line as JSON."""
        return {name: getattr(self, name) for name in ("kind", "name", "module", "summary", "paper")}


def components(kind: str | None = None) -> list[Component]:
    """Everything that is registered, or all of one kind, recipes first.

    Raises:
        TokenOpsError: no such kind.

    >>> [c.name for c in components() if c.kind == "recipe"][:2]
    ['alvts', 'cls_attention']
    """
    if kind is not None and kind not in KINDS:
        near = meant(kind, KINDS)
        raise TokenOpsError("tokenops list", f"--kind among {', '.join(KINDS)}", f"{kind!r}{near}")
    for name in _packages():
        importlib.import_module(name)
    lines = [_component(e) for e in registered(kind) if e.component.__module__.startswith("tokenops.")]
    return sorted(lines, key=lambda line: (line.kind != "recipe", line.module, line.name.lower()))


def find(who: str, name: str) -> list[Component]:
    """The components of a name, recipes first; ``kind/name`` means one, and capitals are overlooked.

    Raises:
        TokenOpsError: none; the message tells near names.

    >>> [c.kind for c in find("somebody", "cls_attention")], [c.name for c in find("somebody", "topk")]
    (['recipe', 'scorer'], ['TopK'])
    """
    known = components()
    kind, _, short = name.rpartition("/")
    for same in (str, str.lower):
        found = [c for c in known if same(c.name) == same(short) and kind in ("", c.kind)]
        if found:
            return found
    near = meant(short, [c.name for c in known])
    raise TokenOpsError(who, "a name of 'tokenops list'", f"{name!r}{near}")


def meant(name: str, known: list[str] | tuple[str, ...]) -> str:
    """What may have been meant, to end a message with.

    >>> meant("fastb", ["fastv", "alvts"])
    '; did you mean fastv?'
    """
    real = {k.lower(): k for k in known}
    near = [real[k] for k in difflib.get_close_matches(name.lower(), list(real), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def signals(entry: Entry) -> dict[str, bool]:
    """What a model has to supply: name -> whether it cannot do without."""
    made = entry.make()
    parts = made.stages.values() if hasattr(made, "stages") else (made,)
    wanted: dict[str, bool] = {}
    for part in parts:
        for name, must in needs(part).items() if callable(part) else ():
            if name in SIGNALS and name != "mask":
                wanted[name] = must or wanted.get(name, False)
    return wanted


def trainable(entry: Entry) -> bool:
    """Whether there are parameters that learn."""
    made = entry.make()
    return isinstance(made, nn.Module) and any(p.requires_grad for p in made.parameters())


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
    summary = inline(" ".join(about.partition("\n\n")[0].split()))
    return Component(entry.kind, entry.name, home(entry.component), summary, entry.paper, entry)


def home(value: Any) -> str:
    """The package that exports a class or function, from which people import it.

    >>> from tokenops.selectors.topk import TopK
    >>> home(TopK)
    'tokenops.selectors'
    """
    module = value.__module__
    while module.count(".") > 1:
        above = module.rpartition(".")[0]
        # a package may hold a module of that name as well
        if getattr(importlib.import_module(above), value.__name__, None) is not value:
            break
        module = above
    return module
