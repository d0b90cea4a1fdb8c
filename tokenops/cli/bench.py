"""``tokenops bench``: what a method gains on this machine, beside what it could gain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenops.cli import FAILED, INTERRUPTED, options, require
from tokenops.cli.arguments import MODEL_NEEDS, check_out_file
from tokenops.cli.bench_request import WHO, Asked, Contenders

if TYPE_CHECKING:
    from tokenops.analysis.measure import Measurement

EXAMPLE = (
    "Example: tokenops bench --random-weights qwen2.5-vl-7b --layers 4 --method divprune --method fastv."
)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder or hub id, as from_pretrained takes it; by default the pocket model that ships.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A recipe of 'tokenops list'; repeat for more. Default: visionselector."
        ),
    ] = None,
    keep: options.Keeps = None,
    pipeline: options.Saved = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Build this architecture instead, nothing is downloaded: llava-1.5-7b, llava-next-7b, "
            "qwen2.5-vl-7b, a config.json or a folder with one.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Visual tokens of the image, where the model has a choice."),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="WxH|N", help="Instead: the image's size in pixels, N for a square.")
    ] = None,
    text: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of text around the image.")] = 64,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts at a time.")] = 1,
    dtype: options.Dtype = None,
    device: options.Device = None,
    layers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first layers of the language model.")
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens to generate; 1 leaves decoding out.")
    ] = 16,
    runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds of all contenders; below 6 there is no verdict.")
    ] = 9,
    warmup: Annotated[
        int, typer.Option(metavar="N", min=0, help="Rounds before them that do not count.")
    ] = 2,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads on a CPU; with one, processor time is measured."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the JSON to a file as well.")
    ] = None,
) -> None:
    """Measure methods on this machine, against the model alone and against what is possible.

    Time to first token, decoding speed, memory, KV cache and time inside the stages, of the model with and
    without each method, in interleaved runs: medians, quartiles and paired ratios with an interval. Says what
    the cost model holds possible here, below how many tokens a method cannot help, and plainly when it does
    not help on this machine. Images and words are random: speed does not depend on them.
    """
    require(WHO, MODEL_NEEDS)
    asked = Asked(model, random_weights, dtype, device, layers, tokens, image_size, text, batch)
    contenders = Contenders(tuple(method or ()), tuple(keep or ()), tuple(pipeline or ()))
    try:
        if out is not None:
            check_out_file(WHO, out)
        _set_threads(threads)
        result = _run(asked, contenders, {"new_tokens": new_tokens, "runs": runs, "warmup": warmup})
        if out is not None:
            from tokenops.demo.files import write_all

            write_all({out: result.json().encode()})
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(result.json() if as_json else result.table(), nl=False)


def _run(asked: Asked, contenders: Contenders, settings: dict[str, Any]) -> Measurement:
    import torch
    from transformers.utils import logging

    from tokenops.analysis.measure import measure, steps
    from tokenops.cli.console import RichTeller

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    teller = RichTeller(Console(stderr=True, highlight=False))
    try:
        with teller.waiting("preparing the model", None):
            model, processor = asked.subject()
            inputs = asked.inputs(model, processor)
            pipelines = contenders.pipelines(model)
        count = steps(len(pipelines), settings["runs"], settings["warmup"])
        with teller.waiting(f"measuring {', '.join(pipelines)}", count) as step:
            return measure(model, inputs, pipelines, **settings, step=step)
    except torch.OutOfMemoryError as error:
        typer.echo(f"error: {str(error).splitlines()[0]} (fewer --layers, --tokens or --batch?)", err=True)
        raise typer.Exit(FAILED) from None


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
