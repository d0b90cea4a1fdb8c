"""Files of a checkpoint from a local folder or the Hugging Face hub; optional packages load when used."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tokenops.errors import TokenOpsError

Source = str | os.PathLike[str]
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def require(module: str, who: str) -> ModuleType:
    """Import an optional dependency of the ``hf`` extra.

    Raises:
        TokenOpsError: it is not installed; the message names the extra.

    >>> require("json", "load").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise TokenOpsError(
            who, f"{package} installed (pip install 'tokenops[hf]')", f"ImportError: {error}"
        ) from error


def fetch(who: str, source: Source, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder with ``files`` of a checkpoint; of a hub repository only these are downloaded.

    A file the repository does not have is simply not in the folder. ``revision`` is for the hub only.

    Raises:
        TokenOpsError: no folder or hub id, a repository out of reach, or a revision of a folder.

    >>> import tempfile
    >>> fetch("load", tempfile.gettempdir(), ["config.json"]).is_dir()
    True
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise TokenOpsError(who, "revision only for a hub id", f"{revision!r} for the folder {folder}")
        return folder
    if folder.exists() or not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise TokenOpsError(who, "an existing folder or a hub id (owner/name)", repr(str(source)))
    hub = require("huggingface_hub", who)
    try:
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        what = f"a folder or a hub repository that can be reached at revision {revision or 'main'}"
        raise TokenOpsError(who, what, f"{source!r} ({type(error).__name__}: {error})") from error
