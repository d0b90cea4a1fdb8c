"""Options that several commands take, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Folder or hub id, as from_pretrained takes it; or 'pocket', which ships."
    ),
]
OutFolder = Annotated[
    Path, typer.Option(metavar="DIR", help="Where the pipeline goes; tokenops.load reads it.")
]
Keeps = Annotated[
    list[str] | None,
    typer.Option(
        metavar="K", help="Ratio (0.2) or count (64) for every method; repeat for more. Default: 0.2."
    ),
]
Saved = Annotated[
    list[Path] | None,
    typer.Option(metavar="FOLDER", help="A pipeline that tokenops.save wrote; repeat for more."),
]
Dtype = Annotated[
    str | None, typer.Option(metavar="D", help="float32, the default on a CPU; bfloat16, on a GPU; float16.")
]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1; the GPU if there is one.")]
