"""What a pipeline makes of a prompt: tokens in every layer, and the operations of choosing them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenops.analysis.cost.architecture import Architecture
from tokenops.analysis.cost.components import Site
from tokenops.analysis.cost.images import Image
from tokenops.analysis.cost.work import Op, move
from tokenops.budget import keep_count
from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.routers import Route
from tokenops.signals import name_of
from tokenops.stages import Merge, Stage

LAUNCHES = {"stage": 195, "route": 65, "choose": 105, "layer": 25}
"""Kernels that an eager pipeline adds: once for a stage before the language model, once for a route, in each
layer that chooses and in each that runs without some. Read off torch's dispatcher on a CPU, views left out; a
compiled call or a graph has next to none (``dataclasses.replace(device, launch=0)``)."""


@dataclass
class Plan:
    """The tokens of one row, layer by layer, and what it costs to choose them for ``batch`` rows.

    Attributes:
        visual: (layers) visual tokens, line breaks left out.
        lengths: (layers) all tokens.
        ops: of choosing, gathering and putting back.
        launches: kernels that an unattached model would not run.
        not_counted: components without a formula.
    """

    visual: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    launches: int = 0
    not_counted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Setting:
    """What all of a plan shares."""

    arch: Architecture
    images: tuple[Image, ...]
    text: int
    batch: int
    size: int
    pairs: str

    def site(self, plan: Plan, rows: int, n: int, k: int, before: int = 0) -> Site:
        """A place to ask a component."""
        views = [(length, times * self.batch) for image in self.images for length, times in image.full]
        decoder = self.arch.decoder
        where = (rows, n, k, decoder.width, self.size, decoder, self.arch.tower)
        return Site(*where, views=views, before=before, pairs=self.pairs, not_counted=plan.not_counted)

    def length(self, counts: Sequence[int]) -> int:
        """Tokens of a row that keeps so many of its images; as many line breaks as may stay."""
        breaks = sum(min(image.breaks, k) for image, k in zip(self.images, counts, strict=True))
        return self.text + breaks + sum(counts)


def make_plan(setting: Setting, pipeline: Pipeline | None) -> Plan:
    """Read the stages of a pipeline as data.

    Raises:
        TokenOpsError: no Pipeline, a stage of another kind, a selector that does not say what it keeps, a
            schedule for other layers.
    """
    plan, counts = Plan(), [image.tokens for image in setting.images]
    stages = {} if pipeline is None else _stages(pipeline)
    if "after_projector" in stages and any(counts):
        counts = _before(setting, plan, stages["after_projector"], counts)
    if "layers" in stages and any(counts):
        _inside(setting, plan, stages["layers"], counts)
    else:
        plan.visual = [sum(counts)] * setting.arch.decoder.layers
        plan.lengths = [setting.length(counts)] * setting.arch.decoder.layers
    return plan


def _stages(pipeline: Any) -> dict[str, Any]:
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("cost", "a Pipeline or None", type(pipeline).__name__)
    stages = dict(pipeline.stages)
    kinds = {"after_projector": Stage, "layers": Route}
    for place, stage in stages.items():
        if place not in kinds:
            raise TokenOpsError("cost", f"stages at {' or '.join(kinds)}", f"one at {place}")
        if not isinstance(stage, kinds[place]):
            raise TokenOpsError("cost", f"a {kinds[place].__name__} at {place}", type(stage).__name__)
    return stages


# -- before the language model ----------------------------------------------------------------------------


def kept_by(stage: Stage, n: int) -> tuple[int, int]:
    """Tokens that the selector keeps of n, and those that are left once the rest has been merged.

    Raises:
        TokenOpsError: a selector without ``keep``.
    """
    keep = getattr(stage.selector, "keep", None)
    if keep is None:
        raise TokenOpsError("cost", "a selector with the attribute keep", name_of(stage.selector))
    selected = keep_count(keep, n)
    more = getattr(stage.merger, "keep", None) if isinstance(stage, Merge) else None
    return selected, selected if more is None else max(selected, keep_count(more, n))


def _before(setting: Setting, plan: Plan, stage: Stage, counts: list[int]) -> list[int]:
    groups = [sum(counts)] if stage.scope == "sample" else counts
    for n, times in Counter(n for n in groups if n).items():
        selected, _ = kept_by(stage, n)
        site = setting.site(plan, times * setting.batch, n, selected)
        plan.ops += [move(site.rows * n * site.width, setting.size), *site.ops(stage.selector)]
        if isinstance(stage, Merge):
            plan.ops += site.ops(stage.merger)
    site = setting.site(plan, setting.batch, sum(counts), 0)
    for signal in stage.needs():
        plan.ops += site.ops(signal)
    plan.launches += LAUNCHES["stage"]
    left = [kept_by(stage, n)[1] for n in groups]
    if stage.scope == "sample":
        left = shares(left[0], counts)
    if left != counts:
        plan.ops.append(move(setting.batch * setting.length(left) * site.width, setting.size))
    return left


def shares(k: int, counts: Sequence[int]) -> list[int]:
    """``k`` in proportion to ``counts``: where a pooled budget really goes depends on the pictures.

    >>> shares(3, [10, 20])
    [1, 2]
    """
    total, ends = sum(counts), [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return [b * k // total - a * k // total for a, b in itertools.pairwise(ends)]


# -- inside it --------------------------------------------------------------------------------------------


def _inside(setting: Setting, plan: Plan, route: Route, counts: list[int]) -> None:
    everything, width = setting.length(counts), setting.arch.decoder.width
    left, exits, before = tuple(counts), route.fate == "exit", plan.launches
    for layer in range(setting.arch.decoder.layers):
        gone, wanted = left, tuple(map(min, route.counts(layer, tuple(counts)), left))
        runs = left if exits else tuple(counts)
        if wanted != left:
            _choose(setting, plan, route, layer, everything)
            runs = wanted
            left = wanted if exits else left
        length = setting.length(runs)
        if runs != tuple(counts):
            # tokens that left need not be put back among the others
            moved = int(wanted != gone) if exits else 2
            plan.ops += [move(setting.batch * length * width, setting.size)] * moved
            plan.launches += LAUNCHES["layer"]
        plan.visual.append(sum(runs))
        plan.lengths.append(length)
    if plan.launches > before:
        plan.launches += LAUNCHES["route"]


def _choose(setting: Setting, plan: Plan, route: Route, layer: int, everything: int) -> None:
    before = plan.lengths[-1] if layer else 0
    site = setting.site(plan, setting.batch, everything, 0, before)
    scorer = route.scorer_at(layer)
    plan.ops += site.ops(scorer)
    for signal in route.needs():
        plan.ops += site.ops(signal)
    plan.launches += LAUNCHES["choose"]
