"""The one error of the library (who was asked, what was expected, what came) and its one warning."""

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


class TokenOpsWarning(UserWarning):
    """Something that works but is probably not what was meant.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     warnings.warn("a scorer trained with another scope", TokenOpsWarning, stacklevel=1)
    >>> told[0].category.__name__
    'TokenOpsWarning'
    """
