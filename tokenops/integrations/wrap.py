"""Replace methods of one instance, and put back exactly what was there."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import torch

from tokenops.errors import TokenOpsError

_PREVIOUS = "_tokenops_previous_"
_MARK = "_tokenops_wrapper"
Around = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]


F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Left out of ``torch.compile``: bookkeeping that reads sizes and counts."""
    return cast(F, torch.compiler.disable(function))


def outermost(function: F) -> F:
    """Left out of ``torch.compile`` itself, while what it calls is compiled on its own."""
    return cast(F, torch.compiler.disable(function, recursive=False))


def named_arguments(
    function: Callable[..., Any], names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Positional arguments by their ``names``, merged with the keyword arguments."""
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names) or any(name in kwargs for name in named):
        inspect.signature(function).bind(None, *args, **kwargs)  # raises what the function would
        raise TokenOpsError(function.__qualname__, "arguments by name", f"{len(args)} by position")
    return {**named, **kwargs}


class LivesOnModel:
    """What an attached model carries beside its wrappers: deep-copied with it, not pickled.

    A bound method pickles as its name, which in the copy finds the class's own: without wrappers, silently.
    ``forgets`` are the attributes that a copy gets new, since they belong to the calls of the original.
    """

    forgets: ClassVar[Mapping[str, Callable[[], Any]]] = {"local": threading.local}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = object.__new__(type(self))
        kept = {name: value for name, value in vars(self).items() if name not in self.forgets}
        vars(twin).update(copy.deepcopy(kept, memo))
        vars(twin).update({name: new() for name, new in self.forgets.items()})
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        expected = (
            "a detached model to pickle (state_dict, save_pretrained, deepcopy, tokenops.save: as it is)"
        )
        raise TokenOpsError("attach", expected, "one with a pipeline attached")


def wrap(module: Any, method: str, around: Around) -> None:
    """Shadow ``module.method`` by ``around(module, original, arguments)``.

    The wrapper is a bound method found in the instance's ``__dict__``: a deep copy of the module carries a
    wrapper bound to the copy, which runs the copy's own weights. Signature and docstring are the original's.
    An instance attribute that was there before (as accelerate sets) is called and later restored; it waits in
    the ``__dict__`` too, so that a copy calls its own.
    """
    previous = module.__dict__.get(method)
    class_function = getattr(type(module), method)
    parameters = list(inspect.signature(class_function).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @functools.wraps(class_function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a partial, since a method made by hand cannot be compiled
        original = self.__dict__.get(_PREVIOUS + method) or functools.partial(class_function, self)
        return around(self, original, named_arguments(class_function, names, args, kwargs))

    # itself, so that functools.wraps around the wrapper does not pass the mark on
    setattr(wrapper, _MARK, wrapper)
    if previous is not None:
        module.__dict__[_PREVIOUS + method] = previous
    object.__setattr__(module, method, MethodType(wrapper, module))


def is_wrapped(module: Any, method: str) -> bool:
    """Whether :func:`wrap`'s wrapper is what a call of ``module.method`` meets first."""
    shadow = module.__dict__.get(method)
    if not isinstance(shadow, MethodType) or shadow.__self__ is not module:
        return False
    return getattr(shadow.__func__, _MARK, None) is shadow.__func__


def check_wrapped(module: Any, method: str) -> None:
    """Raise TokenOpsError when something else wrapped the method later: last in, first out."""
    if not is_wrapped(module, method):
        who = f"{type(module).__name__}.{method}"
        raise TokenOpsError("remove", f"{who} as attach left it", "a later wrapper")


def unwrap(module: Any, method: str) -> None:
    """Put back what was there before :func:`wrap`.

    Raises:
        TokenOpsError: something else wrapped the method later.
    """
    check_wrapped(module, method)
    previous = module.__dict__.pop(_PREVIOUS + method, None)
    if previous is None:
        object.__delattr__(module, method)
    else:
        object.__setattr__(module, method, previous)
