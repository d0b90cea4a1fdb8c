"""Schedules: how many visual tokens each layer keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.budget import Keep, check_keep, keep_count
from tokenops.errors import TokenOpsError, check_ints
from tokenops.shapes import Bool, Float
from tokenops.tokenmap.checks import check_field

Schedule = Callable[[int], Keep | None]


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True)
class Steps:
    r"""``layer -> keep``: ``keeps[i]`` from layer ``starts[i]`` on, None (all tokens) before the first.

    .. math:: \mathrm{keep}(l) = \mathrm{keeps}_i
        \quad\text{for}\quad \mathrm{starts}_i \le l < \mathrm{starts}_{i+1}

    A keep is a ratio or a count of the visual tokens of an image, not of those that reached the layer. Beyond
    ``depth`` layers, if given, a call is an error.

    Raises:
        TokenOpsError: starts that are not ascending layer numbers; not as many keeps, or one out of range.

    >>> schedule = Steps((8, 16, 24), (0.5, 0.25, 0.125))
    >>> [schedule(layer) for layer in (0, 8, 15, 31)]
    [None, 0.5, 0.5, 0.125]
    """

    starts: tuple[int, ...]
    keeps: tuple[Keep | None, ...]
    depth: int | None = None

    def __post_init__(self) -> None:
        starts, keeps = tuple(self.starts), tuple(self.keeps)
        whole = all(_whole(start) and start >= 0 for start in starts)
        if not starts or not whole or any(a >= b for a, b in itertools.pairwise(starts)):
            raise TokenOpsError("Steps", "starts as ascending layer numbers >= 0", starts)
        if len(keeps) != len(starts):
            raise TokenOpsError("Steps", f"{len(starts)} keeps, one for each start", len(keeps))
        if self.depth is not None and not (_whole(self.depth) and self.depth > starts[-1]):
            raise TokenOpsError("Steps", f"depth as an int above the last start, {starts[-1]}", self.depth)
        object.__setattr__(self, "starts", starts)
        keeps = tuple(keep if keep is None else check_keep(keep, who="Steps") for keep in keeps)
        object.__setattr__(self, "keeps", keeps)

    def __call__(self, layer: int) -> Keep | None:
        """The keep of a layer, None for all tokens."""
        if layer < 0 or (self.depth is not None and layer >= self.depth):
            raise TokenOpsError("Steps", f"a layer in [0, {self.depth or '…'})", layer)
        stage = sum(start <= layer for start in self.starts)  # bisect cannot be compiled
        return self.keeps[stage - 1] if stage else None


def constant(keep: Keep) -> Steps:
    r"""The same keep in every layer, as ALVTS (arXiv:2606.14277) has it.

    .. math:: \mathrm{keep}(l) = k

    Raises:
        TokenOpsError: a bad keep.

    >>> constant(0.11)(31)
    0.11
    """
    return Steps((0,), (keep,))


def from_layer(layer: int, keep: Keep) -> Steps:
    r"""All tokens before a layer, ``keep`` from it on, as FastV (arXiv:2403.06764) has it.

    .. math:: \mathrm{keep}(l) = k \quad\text{for}\quad l \ge l_0

    Raises:
        TokenOpsError: a bad keep, a layer that is no int of at least 0.

    >>> [from_layer(2, 64)(layer) for layer in (0, 1, 2, 3)]
    [None, None, 64, 64]
    """
    return Steps((layer,), (keep,))


def pyramid(layers: Sequence[int], keeps: Sequence[Keep]) -> Steps:
    r"""A smaller keep at every stage, as PyramidDrop (arXiv:2410.17247): 8, 16, 24 and .5, .25, .125.

    .. math:: \mathrm{keep}(l) = k_i \quad\text{for}\quad l_i \le l < l_{i+1}, \qquad k_1 \ge k_2 \ge \dots

    Raises:
        TokenOpsError: keeps that grow, or mix ratios and counts, beside what :class:`Steps` refuses.

    >>> pyramid((8, 16, 24), (0.5, 0.25, 0.125))(20)
    0.25
    """
    made = Steps(tuple(layers), tuple(keeps))
    numbers = [keep for keep in made.keeps if keep is not None]
    falls = all(a >= b and type(a) is type(b) for a, b in itertools.pairwise(numbers))
    if len(numbers) < len(made.keeps) or not falls:
        raise TokenOpsError("pyramid", "keeps that do not grow, all ratios or all counts", made.keeps)
    return made


def per_layer(keeps: Sequence[Keep | None]) -> Steps:
    r"""An explicit keep, or None for all tokens, for each layer of a model with exactly so many.

    .. math:: \mathrm{keep}(l) = k_l \quad\text{for}\quad 0 \le l < L

    Raises:
        TokenOpsError: a bad keep, no layers.

    >>> [per_layer([None, 0.5, 0.1])(layer) for layer in range(3)]
    [None, 0.5, 0.1]
    """
    keeps = tuple(keeps)
    return Steps(tuple(range(len(keeps))), keeps, depth=len(keeps))


def mass_curve(
    scores: Float[Tensor, "b l"], visual: Bool[Tensor, "b l"], *, bins: int = 256
) -> Float[Tensor, "n"]:
    r"""Share of the score mass in each n-th of the visual tokens, best first, mean over the rows.

    .. math:: m_j = \frac1B \sum_b F_b(j/n) - F_b((j-1)/n), \qquad
        F_b(i/N_b) = \sum_{r \le i} s_{b,(r)} / \sum_r s_{b,r}

    F is linear in between, so rows may have different counts. Each is concave, so m is descending; it sums to
    1. Rows without visual tokens or without mass are left out (0 everywhere if there are no others).

    Shapes: scores (b l) >= 0, visual (b l) -> (n), float64.

    Raises:
        TokenOpsError: scores or visual of another shape or dtype; negative or NaN scores at visual tokens.

    >>> mass_curve(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[True, False, True]]), bins=4)
    tensor([0.3750, 0.3750, 0.1250, 0.1250], dtype=torch.float64)
    """
    check_field("mass_curve", "scores", scores, None, (None, None))
    check_field("mass_curve", "visual", visual, torch.bool, tuple(scores.shape), scores.device)
    check_ints("mass_curve", bins=(bins, 1))
    curves = []
    for row, real in zip(scores.detach().double(), visual, strict=True):
        best = row[real].sort(descending=True).values
        if not bool((best >= 0).all()) or not bool(best.isfinite().all()):
            raise TokenOpsError("mass_curve", "finite scores >= 0 at visual tokens", "others")
        if len(best) and bool(best[0] > 0):
            grown = torch.cat([best.new_zeros(1), best.cumsum(0)]) / best.sum()
            place = torch.linspace(0, len(best), bins + 1, dtype=grown.dtype, device=grown.device)
            below = place.floor().long().clamp(max=len(best) - 1)
            curves.append((grown[below] + (place - below) * best[below] / best.sum()).diff())
    if not curves:
        return torch.zeros(bins, dtype=torch.float64, device=scores.device)
    return torch.stack(curves).mean(0)


def allocate(gains: Float[Tensor, "l n"], budget: float, *, floor: float = 0.01) -> Steps:
    r"""Ratios per layer with the largest total gain at a given mean: water-filling on marginal gains.

    .. math:: \max_{k} \sum_l \sum_{r \le k_l} g_{l,(r)} \quad\text{with}\quad
        \sum_l k_l = \lfloor \rho L n \rfloor, \; f \le k_l \le n

    Every layer gets its floor f = max(1, ⌊floor·n⌋), then the largest remaining gains over all layers are
    taken. The gain of a layer is concave in k_l (gains descend), so this greedy choice is the optimum; the
    chosen sets are nested, so every ratio is monotone in the budget; the sum is exact. Ties go to the better
    rank, then to the earlier layer: equal layers share equally.

    What a gain is decides what is optimal: what the model's answer loses without it
    (:func:`tokenops.training.layer_gains`) is what counts; the share of a layer's score mass
    (:func:`mass_curve`) is cheap and says only how concentrated the scores of a layer are.

    Ratios are of the n bins; an image of another number of tokens rounds each layer down, so its mean may
    fall short of the budget by up to one token per layer: compare by ``handle.tokens_per_layer``.

    Args:
        gains: of n tokens, or of n equal shares of them, for each of l layers; in any order.
        budget: mean ratio ρ over the layers, in (0, 1].
        floor: smallest ratio of a layer.

    Returns:
        ``per_layer`` of k_l / n.

    Raises:
        TokenOpsError: gains not (l n), negative or not finite; a floor above the budget.

    >>> allocate(torch.tensor([[4.0, 2.0, 1.0, 1.0], [7.0, 1.0, 0.0, 0.0]]), 0.5, floor=0.25).keeps
    (0.5, 0.5)

    Reference: Fox 1966 (greedy marginal allocation); the paper of ALVTS keeps one ratio for all layers.
    """
    check_field("allocate", "gains", gains, None, (None, None))
    layers, n = gains.shape
    for name, ratio in (("budget", budget), ("floor", floor)):
        if isinstance(check_keep(ratio, who="allocate"), int):
            raise TokenOpsError("allocate", f"{name} as a ratio in (0, 1]", repr(ratio))
    gains = gains.detach().double().sort(dim=1, descending=True).values
    if layers == 0 or n == 0 or not bool(((gains >= 0) & gains.isfinite()).all()):
        raise TokenOpsError("allocate", "gains (l n), finite and >= 0", tuple(gains.shape))
    total, least = keep_count(budget, layers * n), keep_count(floor, n)
    if least * layers > total:
        raise TokenOpsError("allocate", f"a floor that {layers} layers can have within {budget}", floor)
    # rank-major, so that the stable sort prefers the better rank, then the earlier layer
    order = gains[:, least:].T.flatten().argsort(descending=True, stable=True)[: total - least * layers]
    counts = least + torch.bincount(order % layers, minlength=layers)
    return per_layer([int(count) / n for count in counts])
