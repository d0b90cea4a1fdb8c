"""The demo from beginning to end: answer aloud, measure, write the pictures and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tokenops.demo.answering import Answer, Answered, answer_all
from tokenops.demo.files import check_folder, write_all
from tokenops.demo.measuring import ROUNDS, WARM_UP, Row, measure, same_length, time_prefill
from tokenops.demo.methods import BUDGETS, ROUTED, Asked, Subject, aloud, held_out, shipped
from tokenops.demo.record import as_json, as_picture, layers_picture
from tokenops.demo.telling import Silent, Teller
from tokenops.errors import check_ints

PICTURE, LAYERS, TABLE = "tokenops-demo.png", "tokenops-demo-layers.png", "tokenops-demo.json"


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        out: folder for the pictures and the table; made if needed.
        questions: how many held-out questions, at least, each accuracy is measured on.
        seed: which scenes.
        rounds: how often prefill is timed; less often on a slow machine.

    Raises:
        TokenOpsError: fewer than one question or round, a negative seed, a folder that cannot be written to.
    """

    out: Path = Path("tokenops-demo")
    questions: int = 240
    seed: int = 0
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        least = {"questions": (self.questions, 1), "seed": (self.seed, 0), "rounds": (self.rounds, 1)}
        check_ints("tokenops demo", **least)
        check_folder(self.out)


@dataclass(frozen=True)
class Result:
    """What was found, and the files that say so."""

    answers: tuple[Answered, ...]
    rows: tuple[Row, ...]
    json: str
    picture: Path
    table: Path
    layers: Path


def run(settings: Settings, teller: Teller | None = None, subject: Subject | None = None) -> Result:
    """Run the demo and write its files; nothing is written before everything is known.

    Args:
        settings: what to run.
        teller: hears about it; None for silence.
        subject: another model of the pocket's shape; None for the one that ships with the package.
    """
    teller = Silent() if teller is None else teller
    with teller.waiting("loading the pocket model", None):
        subject = shipped() if subject is None else subject
        scenes = held_out(settings.questions, settings.seed)
    answers = _answer(subject, aloud(settings.seed), teller)
    with teller.waiting("timing prefill", WARM_UP + settings.rounds) as step:
        plain, prefill = time_prefill(subject, same_length(scenes), settings.rounds, step)
    cells = len(subject.methods()) * len(BUDGETS)
    with teller.waiting("asking held-out questions", cells) as step:
        rows = measure(subject, scenes, plain, prefill, step)
    teller.measured(rows)
    with teller.waiting("drawing", None):
        picture, layers = _draw(subject, answers[0])
    text = as_json(rows, answers, seed=settings.seed, rounds=len(plain), full_ms=1e3 * median(plain))
    out = settings.out
    result = Result(tuple(answers), tuple(rows), text, out / PICTURE, out / TABLE, out / LAYERS)
    write_all({result.picture: picture, result.layers: layers, result.table: text.encode()})
    return result


def _answer(subject: Subject, questions: Sequence[Asked], teller: Teller) -> list[Answered]:
    method, *_ = subject.methods()
    answers: list[Answered] = []
    for number, asked in enumerate(questions, 1):
        answers.append(answer_all(subject, method, asked))
        teller.answered(number, answers[-1])
    return answers


def _draw(subject: Subject, first: Answered) -> tuple[bytes, bytes]:
    """Both pictures of the first question; the method that answered aloud need not answer again."""
    spoken, *others = subject.methods()
    answers: dict[str, Sequence[Answer]] = {spoken.name: first.answers}
    for method in others:
        answers[method.name] = answer_all(subject, method, first.asked).answers
    (routed,) = (method for method in others if method.name == ROUTED)
    layers = layers_picture(first.asked, routed, answers[ROUTED])
    return as_picture(first.asked, (spoken, *others), answers), layers
