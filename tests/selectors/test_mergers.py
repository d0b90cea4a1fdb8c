"""Mergers against plain loops, the suite against wrong mergers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from largest import Largest
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenops import Assignment, Selection, TokenOpsError
from tokenops.selectors import cosine
from tokenops.selectors.mergers import Contextual, bipartite, nearest_kept
from tokenops.signals import name_of, needs
from tokenops.testing import check_merger
from tokenops.testing.drawing import Draw, hold
from tokenops.testing.mergers import home_of


def cos(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a.double(), b.double(), dim=0))


def best(x: Tensor, token: int, among: list[int]) -> int:
    return max(among, key=lambda j: (cos(x[token], x[j]), -j))


def plain_nearest(x: Tensor, kept: list[int]) -> list[int]:
    return [i if i in kept else best(x, i, kept) for i in range(len(x))]


def plain_contextual(x: Tensor, kept: list[int], total: int) -> list[int]:
    rest = [i for i in range(len(x)) if i not in kept]
    count = min(total - len(kept), len(rest))
    if count <= 0:
        return [i if i in kept else -1 for i in range(len(x))]
    step = len(rest) // count
    targets = [rest[j * step] for j in range(count)]
    return [i if i in kept or i in targets else best(x, i, targets) for i in range(len(x))]


def plain_bipartite(x: Tensor, k: int) -> list[int]:
    """ToMe with explicit sizes and means: lists of members under their anchor."""
    groups = [([i], i) for i in range(len(x))]
    while len(groups) > k:
        means = [x[members].double().mean(0) for members, _ in groups]
        edges = []
        for a in range(0, len(groups), 2):
            b = max(range(1, len(groups), 2), key=lambda b: (cos(means[a], means[b]), -b))
            edges.append((cos(means[a], means[b]), -a, b))
        edges = sorted(edges, reverse=True)[: min(len(groups) - k, len(groups) // 2)]
        gone = {-a: b for _, a, b in edges}
        for a, b in gone.items():
            groups[b] = (groups[b][0] + groups[a][0], groups[b][1])
        groups = [g for i, g in enumerate(groups) if i not in gone]
    home = {i: anchor for members, anchor in groups for i in members}
    return [home[i] for i in range(len(x))]


def drawn(draw: Draw) -> tuple[Tensor, list[int]]:
    """Features of one row and a selection of at least one token."""
    n = draw.integer(1, 14)
    kept = sorted(draw.permutation(n)[: draw.integer(1, n)].tolist())
    return draw.normal(n, 5), kept


def select(n: int, kept: list[int]) -> Selection:
    return Selection.from_mask(torch.isin(torch.arange(n), torch.tensor(kept))[None])


def test_nearest_kept_is_the_plain_loop() -> None:
    def law(draw: Draw) -> None:
        x, kept = drawn(draw)
        assert home_of(nearest_kept(x[None], select(len(x), kept)))[0].tolist() == plain_nearest(x, kept)

    hold(law)


def test_contextual_is_the_plain_loop() -> None:
    def law(draw: Draw) -> None:
        x, kept = drawn(draw)
        total = draw.integer(1, len(x) + 1)
        chosen, merger = select(len(x), kept), Contextual(total)
        assert home_of(merger(x[None], chosen))[0].tolist() == plain_contextual(x, kept, total)
        keys = draw.normal(len(x), 3)
        got = home_of(merger(x[None], chosen, vision_keys=keys[None]))[0].tolist()
        assert got == plain_contextual(keys, kept, total)

    hold(law)


def test_bipartite_is_the_plain_loop() -> None:
    def law(draw: Draw) -> None:
        x, kept = drawn(draw)
        got = home_of(bipartite(x[None], select(len(x), kept)))[0].tolist()
        assert got == plain_bipartite(x, len(kept))

    hold(law)


@pytest.mark.parametrize("k", [1, 2, 3, 40, 63, 64])
def test_bipartite_comes_down_to_any_number(k: int) -> None:
    x = torch.randn(2, 64, 8)
    merged = bipartite(x, Selection.from_mask(torch.arange(64).expand(2, 64) < k))
    assert merged.valid.sum(1).tolist() == [k, k]
    assert merged.mass.sum(1).tolist() == [64, 64]
    if k == 1:
        torch.testing.assert_close(merged.reduce(x)[:, 0], x.mean(1))


def test_the_means_are_weighted_by_size() -> None:
    """Three equal tokens and a fourth: the group of all is nearer to the three."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(bipartite(x, select(4, [0])).reduce(x), torch.tensor([[[0.75, 0.25]]]))


def test_targets_are_every_so_many_of_the_rest() -> None:
    x = torch.randn(1, 12, 4)
    merged = Contextual(5)(x, select(12, [3, 7]))
    # ten others, three targets: the first, the fourth and the seventh of them
    assert merged.anchor.tolist() == [[0, 3, 4, 7, 8]]
    assert merged.mass[0, [1, 3]].tolist() == [1, 1]
    released = torch.arange(0, 10, 10 // 3)[:3]
    assert [[0, 1, 2, 4, 5, 6, 8, 9, 10, 11][i] for i in released] == [0, 4, 8]


def test_no_contextual_token_is_pruning() -> None:
    x, chosen = torch.randn(1, 6, 4), select(6, [1, 4])
    for keep in (1, 2, 0.3):
        merged = Contextual(keep)(x, chosen)
        assert merged.group.tolist() == [[-1, 0, -1, -1, 1, -1]]
        assert torch.equal(merged.reduce(x), chosen.reduce(x))


def test_zero_vectors_go_to_zero_vectors() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.1]]])
    assert home_of(nearest_kept(x, select(4, [0, 1]))).tolist() == [[0, 1, 1, 1]]
    assert home_of(Contextual(2)(x, select(4, [0]))).tolist() == [[0, 1, 1, 1]]


def test_equal_kept_tokens_share_by_the_lowest_index() -> None:
    x = torch.randn(1, 1, 48).expand(1, 37, 48)
    assert set(home_of(nearest_kept(x, select(37, [5, 6, 36])))[0].tolist()) == {5, 6, 36}
    assert nearest_kept(x, select(37, [5, 6, 36])).mass.tolist() == [[35, 1, 1]]


MERGERS = pytest.mark.parametrize("merger", [nearest_kept, Contextual(90), bipartite], ids=name_of)


@MERGERS
def test_chunks_give_the_same(merger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, chosen = torch.randn(2, 150, 8), Selection.from_mask(torch.rand(2, 150) < 0.4)
    whole = merger(x, chosen)
    monkeypatch.setattr(cosine, "_AT_ONCE", 300)
    assert torch.equal(home_of(merger(x, chosen)), home_of(whole))


@MERGERS
def test_similarities_are_held_in_pieces(merger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, chosen = torch.randn(1, 600, 4), Selection.from_mask(torch.rand(1, 600) < 0.1)
    monkeypatch.setattr(cosine, "_AT_ONCE", 6000)
    with Largest() as largest:
        merger(x, chosen)
    assert largest.most <= 6000


def test_bad_input() -> None:
    x, chosen = torch.randn(1, 4, 2), select(4, [0])
    for keys in (x[:, :3], x[0], x.long(), x.to("meta"), "keys"):
        with pytest.raises(TokenOpsError, match="Contextual: vision_keys"):
            Contextual(2)(x, chosen, vision_keys=keys)  # type: ignore[arg-type]
    with pytest.raises(TokenOpsError, match="nearest_kept: a Selection of"):
        nearest_kept(x.to("meta"), chosen)
    with pytest.raises(TokenOpsError, match="Contextual"):
        Contextual(0)
    assert repr(Contextual(0.5)) == "Contextual(keep=0.5)"
    assert needs(Contextual(3)) == {"vision_keys": False, "mask": False}


@pytest.fixture
def _find_without_shrinking() -> Iterator[None]:
    before = settings.get_current_profile_name()
    settings.register_profile("find", settings(phases=[Phase.generate]))
    settings.load_profile("find")
    yield
    settings.load_profile(before)


def _all_in_first(x: Tensor, selection: Selection, *, mask: Tensor | None = None) -> Assignment:
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    first = real.long().argmax(1, keepdim=True)
    return Assignment.joining(torch.where(real, first, -1))


def _padding_too(x: Tensor, selection: Selection, *, mask: Tensor | None = None) -> Assignment:
    return nearest_kept(x, selection)


def _by_the_batch(x: Tensor, selection: Selection, *, mask: Tensor | None = None) -> Assignment:
    return nearest_kept(x - x.nan_to_num().mean((0, 1)), selection, mask=mask)


def _drops(x: Tensor, selection: Selection, *, mask: Tensor | None = None) -> Assignment:
    place = torch.arange(x.shape[1]).expand(x.shape[:2])
    return Assignment.joining(torch.where(selection.mask & (place % 3 > 0), place, -1))


WRONG: tuple[Callable[..., Assignment], ...] = (_all_in_first, _padding_too, _by_the_batch, _drops)


@pytest.mark.usefixtures("_find_without_shrinking")
@pytest.mark.parametrize("merger", WRONG, ids=lambda f: f.__name__)
def test_wrong_mergers_are_caught(merger: Any) -> None:
    with pytest.raises(AssertionError):
        check_merger(merger)
