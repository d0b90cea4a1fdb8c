"""The one error of the library (who was asked, what was expected, what came), its one warning, a check."""

from __future__ import annotations


class TokenOpsError(ValueError):
    """Bad input, named by three facts; raised before any state changes.

    ``str(error)`` reads ``"<who>: <expected>, got <got>"``.

    >>> raise TokenOpsError("TopK", "keep must be in (0, 1] or an int >= 1", -0.2)
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: TopK: keep must be in (0, 1] or an int >= 1, got -0.2
    """

    def __init__(self, who: str, expected: str, got: object) -> None:
        super().__init__(who, expected, got)
        self.who, self.expected, self.got = who, expected, got

    def __str__(self) -> str:
        return f"{self.who}: {self.expected}, got {self.got}"


def check_ints(who: str, **numbers: tuple[object, int]) -> None:
    """Each ``name=(number, least)`` is an int, no bool, and not below its least.

    Raises:
        TokenOpsError: one is not; the first is named.

    >>> check_ints("measure", runs=(9, 1), warmup=(0, 0))
    >>> check_ints("measure", runs=(0, 1))
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: measure: runs as an int >= 1, got 0
    """
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise TokenOpsError(who, f"{name} as an int >= {least}", repr(number))


class TokenOpsWarning(UserWarning):
    """Something that works but is probably not what was meant.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     warnings.warn("a scorer trained with another scope", TokenOpsWarning, stacklevel=1)
    >>> told[0].category.__name__
    'TokenOpsWarning'
    """
