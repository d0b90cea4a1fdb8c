"""Shape annotations, ``Float[Tensor, "b n d"]``, without a runtime dependency.

At run time ``Float[Tensor, "b n d"]`` is ``Annotated[Tensor, Shape("float", "b n d")]``; a type checker
reads it as the plain tensor. :func:`check_shapes` compares real tensors with the annotations of a function
and is what the contract tests call; nothing is checked in ordinary use.

Axis letters: b batch, n tokens, k kept, d width, h heads, m queries, l layers or length; ``...`` any
axes; a number stands for itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from torch import Tensor

from tokenops.errors import TokenOpsError


@dataclass(frozen=True)
class Shape:
    """Kind (``float``, ``int``, ``bool``) and axis names of an annotated tensor."""

    kind: str
    axes: str

    def bind(self, who: str, tensor: Tensor, sizes: dict[str, int]) -> None:
        """Check ``tensor`` and record each named axis in ``sizes``; an axis met before must agree."""
        kind = "float" if tensor.is_floating_point() else "bool" if tensor.dtype.is_signed is False else "int"
        if kind != self.kind and not (kind == "bool" and self.kind == "int"):
            raise TokenOpsError(who, f"{self.kind} tensor ({self.axes})", tensor.dtype)
        names, shape = self.axes.split(), list(tensor.shape)
        if "..." in names and len(shape) >= len(names) - 1:
            at = names.index("...")
            del shape[at : len(shape) - len(names) + at + 1], names[at]
        if len(names) != len(shape):
            raise TokenOpsError(who, f"shape ({self.axes})", tuple(tensor.shape))
        for name, size in zip(names, shape, strict=True):
            if sizes.setdefault(name, int(name) if name.isdigit() else size) != size:
                raise TokenOpsError(
                    who, f"shape ({self.axes}) with {name} = {sizes[name]}", tuple(tensor.shape)
                )


if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
else:

    class _Kind:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __getitem__(self, item: tuple[type, str]) -> Any:
            tensor, axes = item
            return Annotated[tensor, Shape(self.kind, axes)]

    Float, Int, Bool = _Kind("float"), _Kind("int"), _Kind("bool")


def _shapes(hint: Any) -> list[Shape]:
    own = [a for a in getattr(hint, "__metadata__", ()) if isinstance(a, Shape)]
    return own + [s for arg in get_args(hint) for s in _shapes(arg) if not own]


def check_shapes(function: Callable[..., Any], arguments: Mapping[str, Any], result: Any = None) -> None:
    """Compare ``arguments`` and ``result`` with the shape annotations of ``function``.

    Raises:
        TokenOpsError: a tensor has another rank, kind or axis size than annotated.
    """
    hints = get_type_hints(function, include_extras=True)
    name = getattr(function, "__qualname__", repr(function))
    sizes: dict[str, int] = {}
    values = dict(inspect.signature(function).bind_partial(**arguments).arguments) | {"return": result}
    for argument, value in values.items():
        if isinstance(value, Tensor):
            for shape in _shapes(hints.get(argument))[:1]:
                shape.bind(f"{name}({argument})", value, sizes)
