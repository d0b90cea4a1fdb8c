"""Replace methods of one instance, and put back exactly what was there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from tokenops.errors import TokenOpsError

_MARK = "_tokenops_wrapper"
Around = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]


def named_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positional arguments by their names, merged with the keyword arguments."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(function).bind(*args, **kwargs)
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL and name in arguments:
            raise TokenOpsError(function.__qualname__, "arguments by name", f"positional *{name}")
    return arguments


def wrap(module: Any, method: str, around: Around) -> Callable[[], None]:
    """Shadow ``module.method`` by ``around(module, original, arguments)``; returns the undo.

    The wrapper is a bound method found in the instance's ``__dict__``: a deep copy of the module carries a
    wrapper bound to the copy, which runs the copy's own weights. Signature and docstring are the original's.
    An instance attribute that was there before (as accelerate sets) is called and later restored.

    The undo raises TokenOpsError when something else wrapped the method after us: last in, first out.
    """
    previous = module.__dict__.get(method)
    class_function = getattr(type(module), method)

    @functools.wraps(class_function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = MethodType(class_function, self) if previous is None else previous
        return around(self, original, named_arguments(original, args, kwargs))

    setattr(wrapper, _MARK, True)
    bound = MethodType(wrapper, module)
    object.__setattr__(module, method, bound)

    def undo() -> None:
        if module.__dict__.get(method) is not bound:
            raise TokenOpsError(
                "remove", f"{type(module).__name__}.{method} as attach left it", "a later wrapper"
            )
        if previous is None:
            object.__delattr__(module, method)
        else:
            object.__setattr__(module, method, previous)

    return undo
