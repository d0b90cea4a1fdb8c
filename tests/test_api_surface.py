"""Public names and their signatures are in ``api_surface.json``, so that a change of them is a visible diff.

Renew it with ``python tests/test_api_surface.py --write``, and tell the change in CHANGELOG.md.
"""

from __future__ import annotations

import inspect
import json
import sys
from difflib import unified_diff
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "docs" / "_ext")]

from public_names import annotated, exports
from public_symbols import members, ours

FILE = Path(__file__).with_name("api_surface.json")


def line(value: Any) -> str:
    """What a name is, with its signature: what callers rely on."""
    if isinstance(value, property) or hasattr(value, "attrname"):
        return "property"
    if isinstance(value, classmethod | staticmethod):
        value, what = value.__func__, type(value).__name__
    elif inspect.isclass(value):
        what = "class"
        if not any({"__init__", "__new__"} & set(vars(base)) for base in value.__mro__ if ours(base)):
            return what  # takes what Python's own class takes
    elif inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        what = "function"
    elif isinstance(value, dict):
        return f"mapping of {', '.join(map(str, value))}"
    else:
        return f"value {value!r}"
    signature, result = annotated(value)
    return f"{what} {signature}{f' -> {result}' if result else ''}"


def surface() -> dict[str, str]:
    """Public path -> what is there."""
    found = {}
    for path, value in exports().items():
        found[path] = line(value)
        if inspect.isclass(value):
            found |= {f"{path}.{name}": line(member) for name, member in members(value)}
    return dict(sorted(found.items()))


def written() -> str:
    """The content of the file."""
    return json.dumps(surface(), indent=1, ensure_ascii=False) + "\n"


def test_the_public_names_are_those_of_the_file() -> None:
    before, now = FILE.read_text(encoding="utf-8").splitlines(), written().splitlines()
    changes = "\n".join(unified_diff(before, now, "api_surface.json", "now", lineterm="", n=0))
    assert not changes, f"{changes}\n\nmeant so? python tests/test_api_surface.py --write, and CHANGELOG.md"


def test_signatures_are_in_it() -> None:
    found = surface()
    assert found["tokenops.recipes.random"] == "function (keep: Keep, seed: int | None = 0) -> Pipeline"
    assert found["tokenops.Selection.k"] == "property"
    assert "k: int | None = None" in found["tokenops.Selection.from_mask"]
    assert " at 0x" not in written()


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(written(), encoding="utf-8")
    else:
        sys.stdout.write(written())
