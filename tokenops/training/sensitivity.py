"""What each layer's visual tokens are worth: how much the next token changes when one layer runs fewer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.budget import check_keep, keep_count
from tokenops.errors import TokenOpsError, check_ints
from tokenops.integrations import attach
from tokenops.integrations.families import Family, find_parts
from tokenops.pipeline import Pipeline
from tokenops.routers import Steps, allocate, per_layer
from tokenops.routers.schedules import Schedule
from tokenops.shapes import Float
from tokenops.training.layer_stream import prompt_on, shown

SHARES = (0.15, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.6)


def layer_gains(
    model: nn.Module,
    recipe: Callable[[Schedule], Pipeline],
    data: Iterable[Mapping[str, Any]],
    budget: float,
    *,
    shares: Sequence[float] = SHARES,
    bins: int = 256,
    progress: bool = True,
    family: Family | None = None,
) -> Float[Tensor, "layers bins"]:
    r"""Gain of every further share of visual tokens in each layer, for :func:`tokenops.routers.allocate`.

    .. math:: D_l(r) = \tfrac12\,\mathbb{E}\,\big\|p - p_{r_l = r,\ r_{m \ne l} = \rho}\big\|_1,
        \qquad g_{l,j} = \check D_l\big(\tfrac{j-1}{n}\big) - \check D_l\big(\tfrac{j}{n}\big)

    p is the model's next token at the end of each prompt without the pipeline; all layers run the budget
    ρ of their visual tokens but one, which runs r. D is measured at r = share·ρ and made convex and falling
    (its lower convex hull, which noise and ties need), linear in between; below the smallest r its first
    slope goes on. D, the total variation, is bounded: no single prompt decides, as it would by a divergence.
    What one layer loses is taken as independent of small changes in the others.

    Args:
        model: of a known family; in its present mode, without gradients.
        recipe: ``schedule -> Pipeline``, e.g. ``partial(recipes.alvts, factors)``, or with a stage before it:
            ``lambda schedule: visionselector(scorer, 0.3) | alvts(factors, schedule)``.
        data: processor outputs with images; prompts padded on the left.
        budget: ρ, the mean ratio that the schedule shall have.
        shares: where D is measured, in units of ρ; those above 1/ρ count as all tokens.
        bins: shares per layer.
        progress: show a progress bar; every layer takes a pass over the data per share.
        family: as in :func:`tokenops.attach`.

    Shapes: -> (layers, bins), float64, >= 0, descending in every layer.

    Raises:
        TokenOpsError: a budget that is no ratio, bad shares or bins, no data, prompts padded on the right,
            beside what ``attach`` refuses.

    The paper of ALVTS (arXiv:2606.14277) keeps one ratio for all layers; this is not from a paper.

    >>> from functools import partial
    >>> from tokenops import recipes
    >>> from tokenops.integrations import low_rank_factors
    >>> from tokenops.pocket.build import build_model, build_processor
    >>> from tokenops.pocket.calibration_data import calibration_data
    >>> model, processor = build_model(width=32), build_processor()
    >>> recipe = partial(recipes.alvts, low_rank_factors(model, rank=4))
    >>> data = list(calibration_data(processor, 2, batch=1))
    >>> gains = layer_gains(model, recipe, data, 0.25, shares=(0.5, 2.0), bins=8, progress=False)
    >>> gains.shape, bool((gains >= 0).all()), len(allocate(gains, 0.25, floor=1 / 8).keeps)
    (torch.Size([4, 8]), True, 4)
    """
    points = _points(budget, shares, bins)
    probe = _Probe(model, recipe, data, family)
    even, gains = probe.damage([budget] * probe.depth), []
    for layer in shown(range(probe.depth), "measuring layers", progress):
        measured = []
        for ratio in points:
            keeps = [ratio if i == layer else budget for i in range(probe.depth)]
            measured.append((ratio, even if ratio == budget else probe.damage(keeps)))
        gains.append(_falls(measured, bins))
    return torch.stack(gains)


def layer_budgets(
    model: nn.Module,
    recipe: Callable[[Schedule], Pipeline],
    data: Iterable[Mapping[str, Any]],
    budget: float,
    *,
    shares: Sequence[float] = SHARES,
    bins: int = 256,
    progress: bool = True,
    family: Family | None = None,
) -> Steps:
    r"""A ratio for each layer, with mean ``budget``: the gains of :func:`layer_gains`, shared and checked.

    .. math:: r(s) = (1 - s)\rho + s\,r^*, \qquad s \in \{0, \tfrac14, \tfrac12, \tfrac34, 1\}

    r* is what :func:`tokenops.routers.allocate` makes of the gains on every other item of ``data``. As it
    takes the layers for independent, the way from one ratio for all to r* is searched on the items in
    between: the s with the least damage there is taken, so on them it is never worse than one ratio for all.

    Args and errors as in :func:`layer_gains`; ``data`` needs two items at least.

    >>> from functools import partial
    >>> from tokenops import recipes
    >>> from tokenops.integrations import low_rank_factors
    >>> from tokenops.pocket.build import build_model, build_processor
    >>> from tokenops.pocket.calibration_data import calibration_data
    >>> model, processor = build_model(width=32), build_processor()
    >>> recipe = partial(recipes.alvts, low_rank_factors(model, rank=4))
    >>> data = list(calibration_data(processor, 2, batch=1))
    >>> steps = layer_budgets(model, recipe, data, 0.25, shares=(0.5, 2.0), bins=8, progress=False)
    >>> sum(steps.keeps) / len(steps.keeps)
    0.25
    """
    _points(budget, shares, bins)
    data = list(data)
    if len(data) < 2:
        raise TokenOpsError("layer_budgets", "at least two items of data", len(data))
    options = {"shares": shares, "bins": bins, "progress": progress, "family": family}
    best = allocate(layer_gains(model, recipe, data[::2], budget, **options), budget, floor=1 / bins).keeps
    probe = _Probe(model, recipe, data[1::2], family)
    ways = [_mix([keep or 1.0 for keep in best], budget, s / 4, bins) for s in range(5)]
    return per_layer(min(ways, key=probe.damage))


def _mix(best: list[float], budget: float, s: float, bins: int) -> list[float]:
    """Between one ratio for all layers and ``best``, in whole bins of the same sum."""
    wanted = [bins * ((1 - s) * budget + s * keep) for keep in best]
    counts = [max(1, int(value + 1e-6)) for value in wanted]
    spare = keep_count(budget, bins * len(best)) - sum(counts)
    order = sorted(range(len(best)), key=lambda i: counts[i] - wanted[i])
    for i in order[: max(0, spare)]:
        counts[i] += 1
    return [count / bins for count in counts]


class _Probe:
    """How far the next tokens are from those of the model without a pipeline."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Callable[[Schedule], Pipeline],
        data: Iterable[Mapping[str, Any]],
        family: Family | None,
    ) -> None:
        self.depth = len(find_parts(model, family).layers)
        self.model, self.recipe, self.data, self.family = model, recipe, list(data), family
        self.told = _next_tokens(model, self.data, None, family)

    def damage(self, keeps: list[float]) -> float:
        """Mean total variation, in [0, 1], with these ratios per layer."""
        now = _next_tokens(self.model, self.data, self.recipe(per_layer(keeps)), self.family)
        return float((self.told - now).abs().sum(-1).mean()) / 2


def _points(budget: float, shares: Sequence[float], bins: int) -> list[float]:
    if isinstance(check_keep(budget, who="layer_gains"), int):
        raise TokenOpsError("layer_gains", "budget as a ratio in (0, 1]", repr(budget))
    check_ints("layer_gains", bins=(bins, 1))
    if not all(isinstance(f, float | int) and 0 < f < float("inf") for f in shares):
        raise TokenOpsError("layer_gains", "shares > 0", shares)
    points = sorted({min(1.0, float(f) * budget) for f in shares})
    if len(points) < 2:
        raise TokenOpsError("layer_gains", "at least two shares that differ", shares)
    return points


@torch.no_grad()
def _next_tokens(
    model: nn.Module, data: list[Mapping[str, Any]], pipeline: Pipeline | None, family: Family | None
) -> Tensor:
    """Probabilities (samples, vocabulary) of the token after each prompt."""
    device, found = next(model.parameters()).device, []
    with nullcontext() if pipeline is None else attach(model, pipeline, family=family):
        for inputs in data:
            moved = prompt_on(device, inputs, "layer_gains")
            mask = moved.get("attention_mask")
            if mask is not None and not bool(mask[:, -1].all()):
                raise TokenOpsError("layer_gains", "prompts padded on the left", "padding at the end")
            logits = model(**moved, use_cache=False, logits_to_keep=1).logits[:, -1]
            found.append(logits.double().softmax(-1))
    if not found:
        raise TokenOpsError("layer_gains", "at least one item of data", 0)
    return torch.cat(found)


def _falls(points: list[tuple[float, float]], bins: int) -> Tensor:
    """What each bin takes off the lower convex hull of ``points``, never less than nothing."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes = [max(0.0, -_slope(a, b)) for a, b in itertools.pairwise(hull)]
    ends = torch.tensor([x for x, _ in hull[1:]] + [float("inf")], dtype=torch.float64)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    starts = torch.cat([edges.new_zeros(1), ends[:-1]])
    shares = (edges[1:, None].minimum(ends) - edges[:-1, None].maximum(starts)).clamp(min=0)
    return shares @ torch.tensor([*slopes, 0.0], dtype=torch.float64)


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
