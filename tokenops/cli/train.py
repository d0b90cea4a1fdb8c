"""``tokenops train``: a scorer for VisionSelector, inside a frozen model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tokenops.cli import options, require
from tokenops.cli.arguments import MODEL_NEEDS, POCKET, check_dtype, check_model, keep_of, place
from tokenops.cli.outputs import Output
from tokenops.cli.records import fingerprint, read_records
from tokenops.errors import TokenOpsError
from tokenops.stages import GATES, SCOPES

WHO = "tokenops train"
EXAMPLE = "Example: tokenops train pocket --steps 100 --batch 32 --out scorer."
_RATE, _POCKET_RATE = 5e-5, 3e-3


def train(
    model: options.Model,
    out: options.OutFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines {"image": PATH or "images": [PATH, ...], "prompt": TEXT, "answer": TEXT}, paths '
            "relative to the file. Not needed for pocket, which draws its training scenes.",
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(metavar="K", help="Budget in training, ratio or count; others work later, too.")
    ] = "0.2",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Optimizer steps.")] = 500,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Examples at a time.")] = 8,
    accumulate: Annotated[
        int, typer.Option(metavar="N", min=1, help="Batches per step; the paper's step is 256 examples.")
    ] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            "--lr", metavar="R", help="Peak learning rate of AdamW. Default: 5e-5, the paper's; pocket: 3e-3."
        ),
    ] = None,
    weight: Annotated[
        float,
        typer.Option(
            metavar="W", min=0.0, help="Of the loss that draws soft masks to hard ones, at the last step."
        ),
    ] = 2.0,
    gate: Annotated[
        str, typer.Option(metavar="G", help="How a soft mask acts: attention, or multiply, the paper's.")
    ] = "attention",
    scope: Annotated[
        str, typer.Option(metavar="S", help="Budget for each image, or sample: for all of a prompt together.")
    ] = "image",
    save_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps between the points to go on from.")
    ] = 50,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of weights and order.")] = 0,
    dtype: options.Dtype = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu or cuda, the first one; the GPU if there is one.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON; everything else goes to stderr.")
    ] = False,
) -> None:
    """Train VisionSelector's scorer: which visual tokens the language model needs for its answers.

    The model is frozen; only the scorer learns, through soft masks, from the loss of your answers and a loss
    that draws soft masks to hard ones, ramped up over the run. Take it when you have questions with answers
    like those of later use; without answers, see tokenops calibrate.

    Writes the pipeline and report.json, whole or not at all. Checkpoints wait in DIR/unfinished: after Ctrl-C
    the same command goes on from the last. Then: tokenops.attach(model, tokenops.load(DIR)).
    """
    require(WHO, (*MODEL_NEEDS, "accelerate", "tqdm"), "demo,train")
    kept = keep_of(WHO, keep)
    lr = rate if rate is not None else _POCKET_RATE if model == POCKET else _RATE
    for ok, expected, got in (
        (0 < lr < float("inf"), "--lr > 0", lr),
        (weight < float("inf"), "--weight as a number", weight),
        (gate in GATES, f"--gate among {', '.join(GATES)}", repr(gate)),
        (scope in SCOPES, f"--scope among {', '.join(SCOPES)}", repr(scope)),
        (data is not None or model == POCKET, "--data for any model but pocket", "none"),
    ):
        if not ok:
            raise TokenOpsError(WHO, expected, got)
    where = place(WHO, device)
    if where.index:
        raise TokenOpsError(WHO, "--device cpu or cuda (another GPU: CUDA_VISIBLE_DEVICES)", device)
    weights = check_dtype(WHO, dtype, where)
    check_model(WHO, model)
    records = None if data is None else read_records(WHO, data, "", answers=True)
    run: dict[str, Any] = {
        "model": model,
        "keep": kept,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "gate": gate,
    }
    run |= {"accumulate": accumulate, "weight": weight, "scope": scope, "seed": seed, "dtype": str(weights)}
    run["data"] = None if records is None else fingerprint(records)
    output = Output(WHO, out, run)

    from tokenops.cli.models import load_model
    from tokenops.cli.trainer import dataset, trained

    with output.resumable():
        with output.teller.waiting("loading the model", None):
            network, processor = load_model(model, weights, where)
        examples = dataset(records, processor, steps * batch * accumulate, seed)
        output.begin()
        pipeline, log = trained(network, processor, examples, run, output, save_every)
        told = {"folder": str(out), **run, "log": log}
        output.finish(pipeline, told)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    Console(highlight=False).print(_table(log))
    typer.echo(f"saved to {out}")


def _table(log: list[dict[str, float]], rows: int = 10) -> Table:
    """The first, the last and some steps between."""
    names = ("step", "loss", "task_loss", "soft_hard_gap")
    table = Table(box=None)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    chosen = sorted({round(i * (len(log) - 1) / max(1, rows - 1)) for i in range(rows)}) if log else []
    for entry in (log[i] for i in chosen):
        table.add_row(*(f"{entry[n]:.4g}" if n in entry else "" for n in names))
    return table
