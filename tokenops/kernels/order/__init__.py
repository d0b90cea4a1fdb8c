"""The scores of a row in order: on a CPU by numpy, which sorts and partitions with vector instructions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from tokenops.eager import transformed
from tokenops.errors import TokenOpsError
from tokenops.kernels.order import reference
from tokenops.registry import register
from tokenops.shapes import Float

__all__ = ["ascending"]


def _sorts_vectors() -> bool:
    try:
        return int(version("numpy").split(".")[0]) >= 2
    except PackageNotFoundError:
        return False


VECTORS = _sorts_vectors()
"""Whether numpy is there, and sorts more than one number at a time."""


@register("kernel")
def ascending(scores: Float[Tensor, "... n"], kth: int | None = None) -> Float[Tensor, "... n"]:
    r"""Every row from its lowest to its highest score, without gradient.

    .. math:: s_{(0)} \le \dots \le s_{(n - 1)}

    With ``kth`` the order may stop at a partition, which is less work: element kth is in its place, none
    before it is higher, none behind it lower. NaN ranks above every number. A call of its own in a graph of
    ``torch.compile``. Torch's own sort where numpy 2 is missing, in exported programs, which run without
    this package, and in eager function transforms.

    Shapes: scores (... n) -> (... n); 0 <= kth < n.

    Raises:
        TokenOpsError: scores that are no float tensor, a kth outside the row.

    >>> ascending(torch.tensor([[1.0, 3.0, 2.0, -1.0]]))
    tensor([[-1.,  1.,  2.,  3.]])
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim == 0:
        got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TokenOpsError("ascending", "a float tensor (... n)", got)
    if kth is not None and not 0 <= kth < scores.shape[-1]:
        raise TokenOpsError("ascending", f"kth in [0, {scores.shape[-1]})", kth)
    if not by_numpy(scores):
        return reference.ascending(scores, kth)
    # numpy has no bfloat16, and orders float16 one at a time
    wide = scores.dtype if scores.dtype in (torch.float32, torch.float64) else torch.float32
    rows = scores.detach().to(wide, copy=True, memory_format=torch.contiguous_format)
    _order(rows, kth)
    return rows.to(scores.dtype)


def by_numpy(scores: Tensor) -> bool:
    """Whether :func:`ascending` would have numpy order these scores."""
    if not VECTORS or scores.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or not transformed()


def _reorder(rows: Tensor, kth: int | None) -> None:
    x = rows.numpy()
    x.sort(axis=-1) if kth is None else x.partition(kth, axis=-1)


# in place: where to hold the rows is left to torch, whose buffers cost less than numpy's
_LIBRARY = torch.library.Library("tokenops", "FRAGMENT")
_LIBRARY.define("order_(Tensor(a!) rows, SymInt? kth) -> ()")
_LIBRARY.impl("order_", _reorder, "CPU")
_order = torch.ops.tokenops.order_.default


def _batched(info: Any, in_dims: tuple[int, None], rows: Tensor, kth: int | None) -> tuple[None, None]:
    _order(rows.movedim(in_dims[0], 0), kth)
    return None, None


torch.library.register_fake("tokenops::order_", lambda rows, kth: None, lib=_LIBRARY)
torch.library.register_vmap("tokenops::order_", _batched, lib=_LIBRARY)
