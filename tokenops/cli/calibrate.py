"""``tokenops calibrate``: low-rank factors for ALVTS, fitted to a model's own attention."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenops.cli import options, require
from tokenops.cli.arguments import MODEL_NEEDS, POCKET, check_dtype, check_model, keep_of, place
from tokenops.cli.outputs import Output, counted
from tokenops.cli.records import Record, fingerprint, read_records
from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    from tokenops.routers.schedules import Steps

WHO = "tokenops calibrate"
EXAMPLE = "Example: tokenops calibrate pocket --rank 16 --samples 64 --out alvts."
_LOSSES = ("mse", "listwise")


def calibrate(
    model: options.Model,
    out: options.OutFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help='JSON lines {"image": PATH or "images": [PATH, ...], "prompt": TEXT}, paths relative to the '
            "file; or a folder of images. Not needed for pocket, which draws its training scenes.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Asked about every image of a folder.")
    ] = "Describe the image.",
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="R", min=1, help="Of the factors; by default an eighth of the width, at most 256."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=2, help="Prompts to fit to.")] = 256,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            help="In every layer: ratio (0.2) or count (64); it can be changed later. Default: 1/9.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="R", help="Instead of --keep: this mean ratio, shared out so that each layer has its own."
        ),
    ] = None,
    budget_samples: Annotated[
        int, typer.Option(metavar="N", min=2, help="Prompts for that; about ten passes over them per layer.")
    ] = 32,
    epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Passes over the prompts at most, in every layer.")
    ] = 10,
    loss: Annotated[
        str, typer.Option(metavar="L", help="mse, the paper's, or listwise, which weighs the top ranks.")
    ] = "mse",
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Which prompts, and their order.")] = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON; everything else goes to stderr.")
    ] = False,
) -> None:
    """Make ALVTS for a model: in every layer a cheap guess of its attention says which tokens run in it.

    The guess is a pair of low-rank factors per layer, taken from the layer's own weights and fitted to the
    scores of its full attention. The model stays frozen, answers are not needed, a few hundred prompts like
    those of later use will do. Take it when you cannot train; to train a scorer, see tokenops train.

    Writes the pipeline and report.json, whole or not at all. Finished layers wait in DIR/unfinished: after
    Ctrl-C the same command goes on from there. Then: tokenops.attach(model, tokenops.load(DIR)).
    """
    require(WHO, (*MODEL_NEEDS, "tqdm"), "demo,train")
    if loss not in _LOSSES:
        raise TokenOpsError(WHO, f"--loss among {', '.join(_LOSSES)}", repr(loss))
    if budget is not None and (keep is not None or not 0 < budget <= 1):
        raise TokenOpsError(WHO, "--budget in (0, 1] and no --keep", budget if keep is None else "both")
    kept = budget or (1 / 9 if keep is None else keep_of(WHO, keep))
    where = place(WHO, device)
    weights = check_dtype(WHO, dtype, where)
    check_model(WHO, model)
    if data is None and model != POCKET:
        raise TokenOpsError(WHO, "--data for any model but pocket", "none")
    records = None if data is None else _drawn(read_records(WHO, data, prompt, answers=False), samples, seed)
    plan = _Plan(rank, kept, None if budget is None else budget_samples, epochs, loss, seed)
    run: dict[str, Any] = {"model": model, "samples": samples, "dtype": str(weights)}
    # what shares the budget out comes after the layers, and may change
    run |= {name: value for name, value in vars(plan).items() if name != "shared"}
    output = Output(WHO, out, run | {"data": None if records is None else fingerprint(records)})

    from tokenops.cli.models import load_model

    with output.resumable():
        with output.teller.waiting("loading the model", None):
            network, processor = load_model(model, weights, where)
        if records is None:
            from tokenops.pocket.calibration_data import calibration_data

            items, encode = list(calibration_data(processor, samples, batch=1, seed=seed)), _same
        else:
            items, encode = records, functools.partial(Record.encoded, processor=processor)
        told, shown = _calibrated(plan, network, items, encode, output, {"model": model, "folder": str(out)})
    typer.echo(json.dumps(told, indent=2) if as_json else shown)


@dataclass(frozen=True)
class _Plan:
    """What was asked for; ``shared`` prompts share the budget out over the layers, None does not."""

    rank: int | None
    keep: float | int
    shared: int | None
    epochs: int
    loss: str
    seed: int


def _calibrated(
    plan: _Plan,
    model: Any,
    items: Sequence[Any],
    encode: Callable[[Any], Any],
    output: Output,
    named: dict[str, str],
) -> tuple[dict[str, Any], str]:
    """Fit, share out, save; the report as JSON values and as text."""
    from tokenops import recipes
    from tokenops.integrations import low_rank_factors
    from tokenops.integrations.families import find_parts
    from tokenops.training import calibrate as fit
    from tokenops.training import layer_budgets

    parts = find_parts(model)
    rank = plan.rank or min(256, max(1, parts.language_model.config.hidden_size // 8))
    factors, teller = low_rank_factors(model, rank), output.teller
    options: dict[str, Any] = {"progress": output.console.is_terminal}
    if not output.console.is_terminal:
        output.console.print(f"fitting {len(parts.layers)} layers to {len(items)} prompts ...")
    output.begin()
    report = fit(
        model,
        factors,
        counted(teller, "reading the prompts", items, encode),
        samples=len(items),
        epochs=plan.epochs,
        loss=plan.loss,
        keep=plan.keep,
        seed=plan.seed,
        folder=output.unfinished,
        **options,
    )
    keep: Any = plan.keep
    if plan.shared is not None:
        some = [encode(item) for item in items[: plan.shared]]
        keep = layer_budgets(model, functools.partial(recipes.alvts, factors), some, plan.keep, **options)
    keeps = [plan.keep] * len(parts.layers) if plan.shared is None else list(_ratios(keep, len(parts.layers)))
    told = named | {"rank": rank, "prompts": len(items), "loss": plan.loss, "seed": plan.seed, "keep": keeps}
    output.finish(recipes.alvts(factors, keep), told | {"layers": [asdict(r) for r in report.layers]})
    per_layer = " ".join(f"{k:.3g}" for k in keeps)
    shown = f"{report}\n\nkeep per layer: {per_layer}\nsaved to {output.folder}"
    return told | {"layers": [asdict(r) for r in report.layers]}, shown


def _ratios(schedule: Steps, depth: int) -> Sequence[Any]:
    return [schedule(layer) for layer in range(depth)]


def _drawn(records: list[Record], samples: int, seed: int) -> list[Record]:
    """So many, in random order."""
    if len(records) < 2:
        raise TokenOpsError(WHO, "at least two prompts", len(records))
    return random.Random(seed).sample(records, min(samples, len(records)))


def _same(item: Any) -> Any:
    return item
