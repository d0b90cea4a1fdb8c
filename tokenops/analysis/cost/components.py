"""What choosing costs: one formula for every component, and for every signal a component reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tokenops.analysis.cost.architecture import Decoder, Tower
from tokenops.analysis.cost.parts import projections
from tokenops.analysis.cost.work import Op, Segments
from tokenops.budget import keep_count
from tokenops.errors import TokenOpsError
from tokenops.routers import LowRankAttention
from tokenops.selectors import Diverse, TopK, UniformGrid
from tokenops.selectors.mergers import Contextual, bipartite, nearest_kept
from tokenops.selectors.scorers import (
    LearnedScorer,
    RandomScore,
    cls_attention,
    feature_norm,
    last_attention,
    next_attention,
    received_attention,
)
from tokenops.signals import name_of


@dataclass(frozen=True)
class Site:
    """Where a component is asked.

    Attributes:
        rows: how often, side by side: images of this size in the batch, or rows of a routed layer.
        n: tokens it sees in each: of one image, or the whole sequence in front of a layer.
        k: tokens that a selector keeps of n.
        width: of its features.
        size: bytes per number of the features.
        decoder: the language model.
        tower: the vision tower.
        views: (length, how many) of what a block of the tower that sees whole images looked at, in the batch.
        before: tokens of a row that ran in the layer before.
        pairs: ``"full"`` or ``"causal"``, how maps with a causal mask are counted.
        not_counted: names of components without a formula collect here.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    >>> from tokenops.analysis.cost.architecture import architecture
    >>> arch = architecture(LlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig()))
    >>> site = Site(1, n=49, k=10, width=4096, size=2, decoder=arch.decoder, tower=arch.tower)
    >>> sum(op.flops for op in site.ops(LearnedScorer(4096))), site.ops(lambda x: x), len(site.not_counted)
    (34357248, [], 1)
    """

    rows: int
    n: int
    k: int
    width: int
    size: int
    decoder: Decoder
    tower: Tower
    views: Segments = ()
    before: int = 0
    pairs: str = "full"
    not_counted: set[str] = field(default_factory=set)

    def ops(self, component: Any) -> list[Op]:
        """The operations of a component here; none, with its name noted, where no formula is known."""
        formula = _formula(component)
        if formula is None:
            self.not_counted.add(component if isinstance(component, str) else name_of(_plain(component)))
            return []
        return list(formula(_plain(component), self))


Formula = Callable[[Any, Site], Iterable[Op]]
_FORMULAS: dict[Hashable, Formula] = {}


def counts(*components: Any) -> Callable[[Formula], Formula]:
    """Decorator: the formula ``(component, site) -> operations`` of a class, a function or a signal's name.

    Subclasses share their class's formula. A container adds those of its parts by ``site.ops(part)``. The
    signals that a component declares are counted apart, by their own formulas.

    Raises:
        TokenOpsError: nothing to count, or something without a hash.

    >>> def edges(x): ...
    >>> @counts(edges)
    ... def _edges(edges, site):
    ...     yield Op(flops=2 * site.rows * site.n * site.width)
    """
    if not components or not all(isinstance(component, Hashable) for component in components):
        raise TokenOpsError("counts", "classes, functions or names of signals", components)

    def record(formula: Formula) -> Formula:
        _FORMULAS.update(dict.fromkeys(components, formula))
        return formula

    return record


def _plain(component: Any) -> Any:
    return _plain(component.func) if isinstance(component, functools.partial) else component


def _formula(component: Any) -> Formula | None:
    component = _plain(component)
    keys = [component] if isinstance(component, Hashable) else []
    found = (_FORMULAS.get(key) for key in [*keys, *type(component).__mro__])
    return next((formula for formula in found if formula is not None), None)


def _product(rows: int, inner: int, columns: int, *, times: int = 1) -> Op:
    """A product of two float32 matrices whose result is used up at once."""
    moved = 4 * (rows * inner + inner * columns)
    return Op(2 * rows * inner * columns * times, moved * times, wide=True)


# -- selectors and scorers ------------------------------------------------------------------------------


@counts(TopK)
def _topk(component: TopK, site: Site) -> Iterable[Op]:
    return site.ops(component.scorer)


@counts(RandomScore, UniformGrid, cls_attention, received_attention, last_attention, next_attention)
def _nothing(component: Any, site: Site) -> Iterable[Op]:
    return ()


@counts(feature_norm)
def _read_once(component: Any, site: Site) -> Iterable[Op]:
    yield Op(0, site.rows * site.n * site.width * site.size)


@counts(LearnedScorer)
def _learned(scorer: LearnedScorer, site: Site) -> Iterable[Op]:
    """The closed form: a mean, two products with one row an image, one product with every token."""
    d, h, tokens = site.width, scorer.hidden, site.rows * site.n
    mean = Op(2 * tokens * d, tokens * d * site.size, wide=True)
    yield from (mean, _product(site.rows, d, h), _product(site.rows, h, d), mean)


@counts(Diverse)
def _diverse(component: Diverse, site: Site) -> Iterable[Op]:
    """All pairs for the first token, then every other token with all."""
    yield _product(site.n, site.width + 1, site.n, times=site.rows)
    if site.k > 1:
        yield _product(site.n, site.width + 1, 1, times=site.rows * (site.k - 1))


@counts(LowRankAttention)
def _low_rank(scorer: LowRankAttention, site: Site) -> Iterable[Op]:
    """Two projections and a float32 map in chunks of rows, summed over visual and over text rows."""
    tokens, n = site.rows * site.n, site.n
    heads, keys, width = 1, 1, scorer.rank

    def projected(inner: int, columns: int) -> Op:  # the weights are float32 and cast
        return Op(2 * tokens * inner * columns, site.size * tokens * inner + 4 * inner * columns)

    yield from [projected(scorer.dim, scorer.rank)] * 2
    if scorer.softmax == "head":
        heads, keys, width = scorer.heads, scorer.kv_heads, scorer.head_dim
        yield from (projected(scorer.rank, h * width) for h in (heads, keys))
    pairs = n * (n + 1) // 2 if scorer.causal and site.pairs == "causal" else n * n
    moved = 4 * tokens * width * (heads + keys)
    yield Op(2 * site.rows * heads * pairs * (width + 2), moved, wide=True)


# -- mergers: they compare directions of one number more, and see n tokens of which a selector kept k -----


@counts(nearest_kept)
def _nearest(component: Any, site: Site) -> Iterable[Op]:
    yield _product(site.n - site.k, site.width + 1, site.k, times=site.rows)


@counts(Contextual)
def _contextual(merger: Contextual, site: Site) -> Iterable[Op]:
    """On the keys of the tower, heads averaged, which the families that are counted all give."""
    rest = site.n - site.k
    targets = min(keep_count(merger.keep, site.n) - site.k, rest)
    if targets > 0:
        yield _product(rest, site.tower.width // site.tower.heads + 1, targets, times=site.rows)


@counts(bipartite)
def _bipartite(component: Any, site: Site) -> Iterable[Op]:
    alive = site.n
    while site.k and alive > site.k:
        yield _product(alive - alive // 2, site.width + 1, alive // 2, times=site.rows)
        alive -= min(alive - site.k, alive // 2)


# -- signals ----------------------------------------------------------------------------------------------


@counts("mask", "grid", "segments", "visual", "rope", "vision_keys")
def _given(signal: str, site: Site) -> Iterable[Op]:
    return ()


@counts("cls_attention")
def _cls_row(signal: str, site: Site) -> Iterable[Op]:
    """One row of the map in every view."""
    tokens = sum(length * times for length, times in site.views)
    yield Op(2 * tokens * site.tower.width, tokens * site.tower.width * site.size, wide=True)


@counts("received_attention")
def _all_columns(signal: str, site: Site) -> Iterable[Op]:
    """The whole map once more, for its logits alone."""
    pairs, tokens = (sum(length**power * times for length, times in site.views) for power in (2, 1))
    yield Op(2 * pairs * site.tower.width, 2 * tokens * site.tower.width * site.size, wide=True)


def _row(site: Site, tokens: int) -> Op:
    decoder = site.decoder
    keys = site.rows * tokens * decoder.kv_heads * decoder.head_dim
    return Op(2 * site.rows * tokens * decoder.heads * decoder.head_dim, keys * site.size, wide=True)


@counts("last_attention")
def _row_before(signal: str, site: Site) -> Iterable[Op]:
    yield _row(site, site.before)


@counts("next_attention")
def _row_ahead(signal: str, site: Site) -> Iterable[Op]:
    """The layer's projections on all tokens, made for this row alone, and the row."""
    yield from projections(site.decoder, site.rows * site.n, site.size)
    yield _row(site, site.n)
