"""Diverse: the greedy loop, and repeated, zero and broken vectors."""

from __future__ import annotations

import pytest
import torch
from largest import Largest
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenops import TokenOpsError
from tokenops.selectors import Diverse, Random, cosine
from tokenops.testing.drawing import Draw, hold


def distances(x: Tensor) -> Tensor:
    return 1 - cosine_similarity(x[:, None].double(), x[None].double(), dim=-1)


def plain(x: Tensor, k: int) -> list[int]:
    d, n = distances(x), len(x)
    alone = [min([float(d[i, j]) for j in range(n) if j != i], default=0.0) for i in range(n)]
    chosen = [max(range(n), key=lambda i: (alone[i], -i))]
    while len(chosen) < k:
        left = [i for i in range(n) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(float(d[i, j]) for j in chosen), -i)))
    return sorted(chosen)


def test_is_the_plain_loop() -> None:
    def law(draw: Draw) -> None:
        n = draw.integer(1, 14)
        x, k = draw.normal(n, 4), draw.integer(1, n)
        assert Diverse(k)(x[None]).index[0].tolist() == plain(x, k)

    hold(law)


def test_every_direction_before_a_repeated_one() -> None:
    def law(draw: Draw) -> None:
        kinds, times = draw.integer(1, 6), draw.integer(1, 5)
        different = torch.cat([draw.normal(kinds, 16), torch.zeros(1, 16)])
        which = torch.arange(kinds + 1).repeat(times)[draw.permutation((kinds + 1) * times)]
        scale = draw.choice(1.0, 1e30, 1e-30)
        for k in (1, kinds + 1, len(which)):
            kept = Diverse(k)(scale * different[which][None]).index[0]
            assert len(set(kept.tolist())) == k
            assert len(set(which[kept].tolist())) == min(k, kinds + 1)

    hold(law)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equal_vectors_tie_and_the_lowest_index_wins(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1, 37, 48), value, dtype=dtype)
    assert Diverse(5)(x).index.tolist() == [[0, 1, 2, 3, 4]]


def test_broken_vectors_come_last() -> None:
    x = torch.randn(1, 9, 4)
    x[0, 2], x[0, 5, 1] = torch.nan, -torch.inf
    assert not Diverse(7)(x).mask[0, [2, 5]].any()
    assert Diverse(8)(x).mask[0].sum() == 8
    assert Diverse(3)(x.fill_(torch.nan)).index.tolist() == [[0, 1, 2]]


def test_lies_farther_apart_than_chance() -> None:
    x = torch.randn(1, 200, 8)

    def smallest(kept: Tensor) -> float:
        d = distances(x[0, kept])
        return float((d + 9 * torch.eye(len(d))).min())

    ours = smallest(Diverse(20)(x).index[0])
    assert ours > 1.5 * max(smallest(Random(20, seed)(x).index[0]) for seed in range(20))


def test_ragged_rows_are_rows_alone() -> None:
    mask = torch.rand(3, 70) < torch.tensor([[1.0], [0.6], [0.0]])
    x = torch.randn(3, 70, 8)
    kept = Diverse(0.3)(x, mask=mask)
    assert kept.counts.tolist() == [21, int(0.3 * int(mask[1].sum()) + 1e-6), 0]
    assert torch.equal(Diverse(0.3)(x[1:2, mask[1]]).mask[0], kept.mask[1, mask[1]])


def test_pairs_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 600, 4)
    whole = Diverse(40)(x)
    monkeypatch.setattr(cosine, "_AT_ONCE", 6000)
    with Largest() as largest:
        pieces = Diverse(40)(x)
    assert torch.equal(pieces.index, whole.index)
    assert largest.most <= 6000


def test_keep_is_validated_and_settable() -> None:
    selector = Diverse(0.5)
    selector.keep = 3
    assert selector(torch.randn(1, 8, 2)).k == 3
    for bad in (0, 1.5, True):
        with pytest.raises(TokenOpsError, match="Diverse"):
            Diverse(bad)
    assert repr(selector) == "Diverse(keep=3)"
