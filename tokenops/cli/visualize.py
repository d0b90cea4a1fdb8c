"""``tokenops visualize``: one HTML page about one question, with what every method keeps and answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenops.cli import options, require
from tokenops.cli.arguments import (
    MODEL_NEEDS,
    POCKET,
    check_dtype,
    check_model,
    check_out_file,
    keep_of,
    place,
)
from tokenops.errors import TokenOpsError

if TYPE_CHECKING:
    from tokenops.analysis.report import Report
    from tokenops.budget import Keep
    from tokenops.pipeline import Pipeline

WHO = "tokenops visualize"
EXAMPLE = "Example: tokenops visualize --method divprune --method fastv --keep 0.2 --out report.html."
HYBRID = "hybrid"
POCKET_METHODS = ("visionselector", "alvts", HYBRID, "divprune", "cls_attention", "random")
METHODS = ("divprune", "cls_attention", "random")
QUESTION = "Describe the image."


def visualize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id, as from_pretrained takes it; by default the pocket model that ships.",
        ),
    ] = POCKET,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A picture; repeat for more. Default: a held-out scene (pocket)."),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"Default: one about the scene, or {QUESTION!r}"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A recipe of 'tokenops list', or, on pocket, hybrid (VisionSelector, then ALVTS); repeat "
            "for more. By default divprune, cls_attention, random; pocket: these, visionselector, "
            "alvts, hybrid.",
        ),
    ] = None,
    keep: options.Keeps = None,
    pipeline: options.Saved = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("tokenops-report.html"),
    runs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Interleaved rounds of timing; 0 leaves time out.")
    ] = 6,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer.")] = 32,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON; everything else goes to stderr.")
    ] = False,
) -> None:
    """Write one HTML page that shows which visual tokens each method keeps, layer by layer.

    The page holds everything it needs and opens offline, also on a phone: the image with kept tokens bright,
    a slider over the layers, scores as colours, the model's answer with each method and with all tokens,
    tokens and work of each layer, and time to the first token, measured here.
    """
    require(WHO, MODEL_NEEDS)
    check_out_file(WHO, out)
    asked = Asked(model, tuple(image or ()), question)
    contenders = Contenders(model, tuple(method or ()), tuple(keep or ()), tuple(pipeline or ()))
    settings = {"runs": runs, "new_tokens": new_tokens}
    result = _run(asked, contenders, dtype, device, settings)
    result.write(out)
    if as_json:
        typer.echo(json.dumps(summary(result, out), indent=2, ensure_ascii=False))
    else:
        typer.echo(str(out))


@dataclass(frozen=True)
class Asked:
    """The model, pictures and question that were asked for."""

    model: str
    images: tuple[Path, ...]
    question: str | None

    def __post_init__(self) -> None:
        check_model(WHO, self.model)
        if self.model != POCKET and not self.images:
            raise TokenOpsError(WHO, "--image with a model of your own", "none")
        for path in self.images:
            if not path.is_file():
                raise TokenOpsError(WHO, "--image as a file that is there", path)

    def prompt(self) -> tuple[list[Any], str]:
        """Pictures and question.

        Raises:
            TokenOpsError: a file that is no image.
        """
        from tokenops.cli.records import Record
        from tokenops.demo.methods import aloud

        if self.images:
            return Record(self.images, "", None, WHO).opened(), self.question or QUESTION
        (scene,) = aloud(seed=0, number=1)
        return [scene.scene.image], self.question or scene.question.text


@dataclass(frozen=True)
class Contenders:
    """Methods by name, each with every budget, and pipelines from disk."""

    source: str
    methods: tuple[str, ...]
    keeps: tuple[str, ...]
    folders: tuple[Path, ...]

    def __post_init__(self) -> None:
        from tokenops import recipes

        known = {*recipes.list_recipes(), *({HYBRID} if self.source == POCKET else ())}
        for name in self.methods:
            if name not in known:
                raise TokenOpsError(WHO, f"--method among {', '.join(sorted(known))}", repr(name))
            if name == "visionselector" and self.source != POCKET:
                expected = "--pipeline with a trained visionselector (tokenops train)"
                raise TokenOpsError(WHO, expected, "--method visionselector, whose scorer is not trained")
        for folder in self.folders:
            if not (folder / "config.json").is_file():
                raise TokenOpsError(WHO, "--pipeline as a folder that tokenops.save wrote", folder)
        for keep in self.keeps:
            keep_of(WHO, keep)

    def pipelines(self, model: Any) -> dict[str, Pipeline]:
        """Name -> pipeline, on the model's device. Methods that are tried by default may not fit a model.

        Raises:
            TokenOpsError: a folder without a pipeline, one named twice, or nothing that fits.
        """
        from tokenops.integrations.checkpoints import load

        keeps = [keep_of(WHO, text) for text in self.keeps or ("0.2",)]
        default = () if self.folders else POCKET_METHODS if self.source == POCKET else METHODS
        made: list[tuple[str, Pipeline]] = []
        for name in self.methods or default:
            for keep in keeps:
                title = f"{name} {keep:g}" if len(keeps) > 1 else name
                found = self._method(model, name, keep)
                if self.methods or _fits(model, found):
                    made.append((title, found))
        made += [(folder.resolve().name, load(folder)) for folder in self.folders]
        names = [name for name, _ in made]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TokenOpsError(WHO, "every contender once", ", ".join(twice))
        device = next(model.parameters()).device
        return {name: found.to(device).eval() for name, found in made}

    def _method(self, model: Any, name: str, keep: Keep) -> Pipeline:
        from tokenops.analysis.measure.methods import method
        from tokenops.demo.methods import Subject
        from tokenops.pocket.routing import alvts
        from tokenops.pocket.selector import visionselector

        if self.source == POCKET and name == HYBRID:
            return Subject(model, None, visionselector, alvts).hybrid(keep)  # pyright: ignore[reportArgumentType]
        trained = {"visionselector": visionselector, "alvts": alvts} if self.source == POCKET else {}
        return trained[name](keep) if name in trained else method(model, name, keep)


def _fits(model: Any, pipeline: Pipeline) -> bool:
    from tokenops.integrations import attach

    try:
        attach(model, pipeline.to(next(model.parameters()).device)).remove()
    except TokenOpsError:
        return False
    return True


def _run(
    asked: Asked, contenders: Contenders, dtype: str | None, device: str | None, settings: dict[str, Any]
) -> Report:
    import torch

    from tokenops.analysis.report.gather import report, steps
    from tokenops.cli.console import RichTeller
    from tokenops.cli.models import load_model

    where = place(WHO, device)
    kind = check_dtype(WHO, dtype, where)
    pictures, question = asked.prompt()
    if asked.model == POCKET:
        # a model this small gains nothing from a second thread, and loses much to it on a busy machine
        torch.set_num_threads(1)
    teller = RichTeller(Console(stderr=True, highlight=False))
    with teller.waiting("preparing the model", None):
        model, processor = load_model(asked.model, kind, where)
        pipelines = contenders.pipelines(model)
    count = steps(len(pipelines), settings["runs"])
    with teller.waiting(f"asking with {', '.join(pipelines)}", count) as step:
        return report(model, processor, pictures, question, pipelines, **settings, step=step)


def summary(result: Report, out: Path) -> dict[str, Any]:
    """What the page says, without pictures and tokens."""
    data = result.data
    rows = [
        {
            "name": m["name"],
            "pipeline": m["code"],
            "answer": m["answer"],
            "tokens_per_layer": m["tokens_per_layer"],
            "time": m["time"],
            "flops": m["cost"]["flops"],
        }
        for m in data["methods"]
    ]
    named = ("tokenops_version", "model", "question", "text_tokens", "timing")
    return {"report": str(out), **{name: data[name] for name in named}, "rows": rows}
