"""Writing whole files or none: beside their targets first, then renamed."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from tokenops.errors import TokenOpsError


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write every file or, if anything goes wrong or is interrupted before the last is on disk, none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_all({Path(folder) / "new" / "a.txt": b"all of it"})
    ...     [file.name for file in (Path(folder) / "new").iterdir()]
    ['a.txt']
    """
    beside = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside[path].write_bytes(content)
        for path, temporary in beside.items():
            temporary.replace(path)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path, who: str = "tokenops demo") -> None:
    """Refuse a folder that cannot be written to, before any work is done; leaves nothing there.

    Raises:
        TokenOpsError: it, or the nearest folder above it that exists, is a file or not writable.

    >>> check_folder(Path("a") / "new" / "folder")
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise TokenOpsError(who, "a folder to write to", f"the file {there}")
    try:
        # permissions do not tell: those of /proc let root write, and nothing can be made there
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        raise TokenOpsError(who, "a folder that may be written to", there) from None
