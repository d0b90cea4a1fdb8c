"""What is compared: six ways to choose tokens, at four budgets, on the model that ships with the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenops import recipes
from tokenops.budget import Keep
from tokenops.pipeline import Pipeline

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from tokenops.pocket import Question, Scene

BUDGETS: tuple[float, ...] = (1.0, 0.3, 0.2, 0.1)
FIRST = "visionselector"
"""The method that answers aloud."""
ROUTED = "alvts"
"""The method whose layers are drawn one by one."""


@dataclass(frozen=True)
class Method:
    """A way to choose tokens: its recipe's name, its name for people and ``pipeline(keep)``."""

    name: str
    title: str
    pipeline: Callable[[float], Pipeline]


@dataclass(frozen=True)
class Subject:
    """The model under test, its processor, a trained VisionSelector and a calibrated ALVTS for it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    selector: Callable[[Keep], Pipeline]
    router: Callable[[Keep], Pipeline]

    def hybrid(self, keep: Keep) -> Pipeline:
        """Twice the budget reaches the language model; of that, each layer runs what makes up the budget."""
        if isinstance(keep, int):
            return self.selector(2 * keep) | self.router(keep)
        before = min(1.0, 2 * keep)
        return self.selector(before) | self.router(keep / before)

    def methods(self) -> tuple[Method, ...]:
        """VisionSelector, ALVTS, both in one, and the baselines they have to beat."""
        return (
            Method(FIRST, "VisionSelector", self.selector),
            Method(ROUTED, "ALVTS", self.router),
            Method("hybrid", "both", self.hybrid),
            Method("random", "random", recipes.random),
            Method("uniform", "uniform grid", recipes.uniform),
            Method("cls_attention", "CLS attention", recipes.cls_attention),
        )


@dataclass(frozen=True)
class Asked:
    """A question about a scene."""

    scene: Scene
    question: Question


def shipped() -> Subject:
    """The trained pocket model, its trained scorer and its calibrated factors, from the package."""
    from tokenops import pocket
    from tokenops.pocket.routing import alvts
    from tokenops.pocket.selector import visionselector

    model, processor = pocket.load()
    return Subject(model, processor, visionselector, alvts)


def held_out(questions: int, seed: int) -> list[Scene]:
    """The first held-out scenes of a seed that hold ``questions`` questions or a few more.

    >>> sum(len(scene.questions()) for scene in held_out(20, seed=0)) >= 20
    True
    """
    from tokenops import pocket

    some: list[Scene] = []
    for scene in pocket.stream("heldout", seed):
        some.append(scene)
        questions -= len(scene.questions())
        if questions <= 0:
            break
    return some


def aloud(seed: int, number: int = 4) -> list[Asked]:
    """One question of each of the first held-out scenes, the kinds taking turns: none is picked by hand.

    >>> [asked.question.kind for asked in aloud(seed=0)]
    ['what', 'where', 'count', 'what']
    """
    from tokenops import pocket

    kinds = ("what", "where", "count")
    some: list[Asked] = []
    for index, scene in enumerate(pocket.scenes(number, "heldout", seed)):
        fitting = [q for q in scene.questions() if q.kind == kinds[index % len(kinds)]]
        some.append(Asked(scene, fitting[index % len(fitting)]))
    return some
