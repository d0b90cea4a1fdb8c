"""The page: data, style and script in one file that asks for nothing else."""

from __future__ import annotations

import html
import json
import os
import re
import uuid
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tokenops.errors import TokenOpsError

_MARK = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, eq=False)
class Report:
    """What :func:`tokenops.analysis.report` found.

    Attributes:
        data: JSON values: ``visuals`` with their tokens, ``methods`` with their stages, and what was asked.

    >>> page = Report({"question": "</script><b>", "model": "A"})
    >>> "</script><b>" in page.html()
    False
    """

    data: dict[str, Any]

    def html(self) -> str:
        """One self-contained page; opening it makes no request."""
        there = resources.files(__package__ or "")
        template, style, script = (
            (there / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
        )
        parts = {
            "title": html.escape(f"{self.data['question']} \N{EM DASH} {self.data['model']}"),
            "question": html.escape(self.data["question"]),
            "style": style,
            "script": script,
            "data": _as_script(self.data),
        }
        return _MARK.sub(lambda found: parts[found[1]], template)

    __str__ = html

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all; folders are made.

        Raises:
            TokenOpsError: ``path`` is a folder.
            OSError: it cannot be written.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Report({"question": "what ?", "model": "A"}).write(Path(folder) / "new" / "page.html").name
        'page.html'
        """
        path = Path(path)
        if path.is_dir():
            raise TokenOpsError("report", "a file to write", f"the folder {path}")
        content = self.html().encode("utf-8", "replace")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path


def _as_script(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
