"""Which backend serves a request: the first of a list that has nothing against it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenops.errors import TokenOpsError
from tokenops.kernels.attention import loop, reference, sdpa, varlen, xformers
from tokenops.kernels.attention.request import Backend, Request

# the best first; "math", the reference, serves everything and is there to be asked for
BACKENDS = (
    Backend("sdpa", sdpa.why_not, sdpa.run),
    Backend("xformers", xformers.why_not, xformers.run),
    Backend("varlen", varlen.why_not, varlen.run),
    Backend("loop", loop.why_not, loop.run),
    Backend("math", loop.why_not, reference.run),
)


@dataclass(frozen=True)
class Choice:
    """The backend that is taken, and for every backend what speaks against it, None if nothing does.

    >>> print(Choice("loop", (("sdpa", "the segments have different lengths"), ("loop", None))))
    attention runs on loop
      sdpa  no: the segments have different lengths
      loop  yes
    """

    backend: str
    reasons: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.reasons)
        lines = [f"  {name:{width}}  {f'no: {no}' if no else 'yes'}" for name, no in self.reasons]
        return "\n".join([f"attention runs on {self.backend}", *lines])


def choose(request: Request) -> Choice:
    """Ask every backend."""
    reasons = tuple((backend.name, backend.why_not(request)) for backend in BACKENDS)
    return Choice(next(name for name, no in reasons if no is None), reasons)


def pick(request: Request, name: str | None) -> Backend:
    """The named backend, or the first that serves.

    Raises:
        TokenOpsError: an unknown name, or a backend that cannot serve.
    """
    if name is None:
        return next(backend for backend in BACKENDS if backend.why_not(request) is None)
    for backend in BACKENDS:
        if backend.name == name:
            if no := backend.why_not(request):
                raise TokenOpsError("attention", f"a backend that serves ({name}: {no})", repr(name))
            return backend
    raise TokenOpsError("attention", "backend: " + ", ".join(b.name for b in BACKENDS), repr(name))
