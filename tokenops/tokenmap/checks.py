"""Checks of fields and arguments, before any work."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]

from tokenops.errors import TokenOpsError


def check_field(
    who: str,
    name: str,
    tensor: object,
    dtype: torch.dtype | None,
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
) -> None:
    """Rank, sizes (None for any), dtype (None for floating) and device of a field."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.ndim != len(shape)
        or any(s not in (None, t) for s, t in zip(shape, tensor.shape, strict=True))
    ):
        expected = f"{name} of shape ({', '.join('*' if s is None else str(s) for s in shape)})"
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TokenOpsError(who, expected, got)
    if (dtype is None and not tensor.is_floating_point()) or (dtype is not None and tensor.dtype != dtype):
        raise TokenOpsError(who, f"{name} of dtype {dtype or 'float'}", tensor.dtype)
    if device is not None and tensor.device != device:
        raise TokenOpsError(who, f"{name} on {device}", tensor.device)


def check_rows(who: str, name: str, x: Tensor, b: int, n: int, device: torch.device) -> None:
    """``x`` of shape (b n ...) on the device."""
    if x.ndim < 2 or x.shape[:2] != (b, n):
        raise TokenOpsError(who, f"{name} of shape ({b}, {n}, ...)", tuple(x.shape))
    if x.device != device:
        raise TokenOpsError(who, f"{name} on {device}", x.device)


def check_alike(who: str, y: Tensor, into: Tensor) -> None:
    """``y`` with the trailing shape and dtype of ``into``."""
    if y.shape[2:] != into.shape[2:] or y.dtype != into.dtype:
        got = f"{tuple(y.shape[2:])} {y.dtype}"
        raise TokenOpsError(who, f"y like into, {tuple(into.shape[2:])} {into.dtype}", got)


def check_range(who: str, name: str, tensor: Tensor, low: int, high: int) -> None:
    """Every whole number of ``tensor`` in [low, high), so that no row reads or writes another.

    At once on the CPU; on CUDA by an assertion on the device, which reads nothing back and ends the process'
    CUDA context where it fails. Nothing is checked while compiling or where there are no values to read
    (meta and fake tensors, vmap).
    """
    if torch.compiler.is_compiling() or tensor.numel() == 0:
        return
    expected = f"{name} in [{low}, {high})"
    if tensor.device.type == "cpu" and (found := _extremes(tensor)) is not None:
        least, most = found
        if least < low or most >= high:
            raise TokenOpsError(who, expected, least if least < low else most)
    elif tensor.is_cuda and not is_functorch_wrapped_tensor(tensor):
        least, most = tensor.aminmax()
        torch.ops.aten._assert_async.msg((least >= low) & (most < high), f"{who}: {expected}")


def check_weight(who: str, weight: Tensor, group: Tensor) -> None:
    """Finite weights >= 0 at all tokens in a group; checked on the CPU only, and not while compiling."""
    if torch.compiler.is_compiling() or weight.numel() == 0 or weight.device.type != "cpu":
        return
    found = _extremes(weight.detach().masked_fill(group < 0, 0))
    if found is not None and not (found[0] >= 0 and found[1] < float("inf")):
        raise TokenOpsError(who, "finite weights >= 0", found[1] if found[0] >= 0 else found[0])


def _extremes(tensor: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value, or None where a tensor has no values to read (fake tensors, vmap)."""
    least, most = tensor.aminmax()
    try:
        return least.item(), most.item()
    except RuntimeError:
        return None


def flat_places(
    who: str,
    positions: Tensor,
    length: int,
    rows: Tensor | None,
    valid: Tensor | None,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Where the tokens (b n) stand among all tokens of all sequences, one past the end for padding.

    Also ``valid`` (s l), all real and one sequence a row unless given.
    """
    b = size[0]
    check_field(who, "positions", positions, torch.long, size)
    rows = torch.arange(b, device=positions.device) if rows is None else rows
    check_field(who, "rows", rows, torch.long, (b,), positions.device)
    if valid is None:
        valid = torch.ones(b, length, dtype=torch.bool, device=positions.device)
    check_field(who, "valid", valid, torch.bool, (None, length), positions.device)
    check_range(who, "positions", positions, -1, length)
    check_range(who, "rows", rows, 0, valid.shape[0])
    return torch.where(positions >= 0, rows[:, None] * length + positions, valid.numel()), valid
