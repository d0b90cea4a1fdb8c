"""``tokenops demo``: a small trained model answers with fewer and fewer of its visual tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding

from tokenops.cli import require
from tokenops.cli.arguments import MODEL_NEEDS

EXAMPLE = "Example: tokenops demo --out pictures --questions 1000."


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the pictures and the table; made if needed.")
    ] = Path("tokenops-demo"),
    questions: Annotated[
        int, typer.Option(metavar="N", help="Measure accuracy on at least this many held-out questions.")
    ] = 240,
    seed: Annotated[int, typer.Option(metavar="S", help="Which held-out scenes to ask about.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the table as JSON; everything else goes to stderr.")
    ] = False,
) -> None:
    """A small trained model answers questions with 100, 30, 20 and 10 % of its visual tokens.

    The pocket model that ships with this package (a LLaVA of 1.3 million parameters, no download) is asked
    about handwritten digits it has never seen. VisionSelector answers a few questions aloud; then it is
    compared with random, uniform and CLS-attention selection: accuracy, tokens kept, prefill time beside
    that of all tokens, and KV-cache size. Writes tokenops-demo.png (kept tokens bright, dropped ones dark)
    and tokenops-demo.json. Takes about a minute on one CPU core.
    """
    require("tokenops demo", (*MODEL_NEEDS, "sklearn", "matplotlib"))
    import torch
    from transformers.utils import logging

    from tokenops.cli.console import RichTeller
    from tokenops.demo.record import NOTE
    from tokenops.demo.run import Settings, run

    settings = Settings(out, questions, seed)
    logging.disable_progress_bar()
    # a model this small gains nothing from a second thread, and loses much to it on a busy machine
    torch.set_num_threads(1)
    console = Console(stderr=as_json, highlight=False)
    start = time.perf_counter()
    result = run(settings, RichTeller(console))
    if as_json:
        typer.echo(result.json, nl=False)
    console.print(Padding(NOTE, (0, 1)))
    files = f"\n picture  {result.picture}\n layers   {result.layers}\n table    {result.table}"
    console.print(files, soft_wrap=True)
    console.print(f" {time.perf_counter() - start:.0f} seconds")
