"""The checks every selector and scorer makes before it works."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device}"
    return type(value).__name__


def check_tokens(who: str, x: object, mask: object = None, *, width: int | None = None) -> None:
    """``x`` is a float tensor (b n d), of width d if given, and ``mask`` a bool tensor (b n) beside it.

    Raises:
        TokenOpsError: it is not.
    """
    expected = f"x float (b, n, {'d' if width is None else width})"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 3:
        raise TokenOpsError(who, expected, _describe(x))
    if width is not None and x.shape[2] != width:
        raise TokenOpsError(who, expected, _describe(x))
    if mask is not None:
        check_beside(who, "mask", mask, x, torch.bool)


def check_beside(
    who: str, name: str, value: object, x: Tensor, dtype: torch.dtype | None, *rest: int
) -> None:
    """``value`` is (b n *rest) on the device of ``x`` (b n d), of ``dtype`` (None for any float).

    Raises:
        TokenOpsError: it is not.
    """
    shape = (*x.shape[:2], *rest)
    if isinstance(value, Tensor) and value.shape == shape and value.device == x.device:
        if value.is_floating_point() if dtype is None else value.dtype == dtype:
            return
    raise TokenOpsError(who, f"{name} {dtype or 'float'} {shape} on {x.device}", _describe(value))
