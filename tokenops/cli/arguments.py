"""Arguments of several commands, checked before anything is loaded: models, devices, dtypes, budgets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    import torch

    from tokenops.budget import Keep

POCKET = "pocket"
MODEL_NEEDS = ("transformers", "tokenizers", "safetensors", "numpy", "PIL", "torchvision")
DTYPES = ("float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def check_model(who: str, source: str) -> None:
    """Refuse what is neither ``pocket`` nor a folder nor like a hub id, before anything is loaded.

    Raises:
        TokenOpsError: so.

    >>> check_model("somebody", "pocket")
    """
    if source != POCKET and not Path(source).is_dir() and not _HUB_ID.fullmatch(source):
        raise TokenOpsError(
            who, "MODEL as 'pocket', an existing folder or a hub id (owner/name)", repr(source)
        )


def check_out_file(who: str, out: Path) -> None:
    """Refuse a file that cannot be written, before the work; its folder is made if needed.

    Raises:
        TokenOpsError: a folder of that name, or a folder above it in which nothing can be made.
    """
    from tokenops.demo.files import check_folder

    if out.is_dir():
        raise TokenOpsError(who, "--out as a file", f"the folder {out}")
    check_folder(out.parent, who)


def place(who: str, device: str | None) -> torch.device:
    """The device of that name, the GPU if there is one by default.

    Raises:
        TokenOpsError: no such device here.

    >>> place("somebody", "cpu")
    device(type='cpu')
    """
    import torch

    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda"):
        raise TokenOpsError(who, "--device cpu, cuda or cuda:<number>", repr(device))
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise TokenOpsError(who, f"--device among the {torch.cuda.device_count()} GPUs here", device)
    return torch.device("cuda", where.index or 0) if where.type == "cuda" else where


def check_dtype(who: str, dtype: str | None, where: torch.device) -> torch.dtype:
    """The dtype of that name; float32 on a CPU and bfloat16 on a GPU by default.

    Raises:
        TokenOpsError: another name.

    >>> import torch
    >>> check_dtype("somebody", None, torch.device("cpu"))
    torch.float32
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise TokenOpsError(who, f"--dtype among {', '.join(DTYPES)}", repr(dtype))
    return getattr(torch, dtype or ("bfloat16" if where.type == "cuda" else "float32"))


def keep_of(who: str, text: str) -> Keep:
    """A budget as it is written: ``"64"`` is a count, ``"0.2"`` and ``"1.0"`` are ratios.

    Raises:
        TokenOpsError: neither.

    >>> keep_of("somebody", "64"), keep_of("somebody", "0.2")
    (64, 0.2)
    """
    from tokenops.budget import check_keep

    try:
        keep = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise TokenOpsError(who, "--keep as a ratio (0.2) or a count (64)", repr(text)) from None
    return check_keep(keep, who=f"{who} --keep")
