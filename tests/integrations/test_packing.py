"""The mask as lengths: packed attention equals sdpa with the same mask written out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokenops.errors import TokenOpsError
from tokenops.integrations.packing import Packing
from tokenops.kernels.attention import attention


def written_out(keys: Tensor, queries: int, causal: bool) -> Tensor:
    """(b 1 q k), entry by entry."""
    b, k = keys.shape
    out = torch.zeros(b, 1, queries, k, dtype=torch.bool)
    for row in range(b):
        for i in range(queries):
            for j in range(k):
                out[row, 0, i, j] = keys[row, j] and (not causal or j <= i + k - queries)
    return out


def tensors(b: int, queries: int, keys: int, strided: bool) -> list[Tensor]:
    """Queries with 4 heads, keys and values with 2, as they come from projections or from a cache."""
    out = []
    for h, n, d in ((4, queries, 8), (2, keys, 8), (2, keys, 6)):
        x = torch.randn(b, n, h, d).transpose(1, 2)
        out.append((x if strided else x.contiguous()).detach().requires_grad_())
    return out


@given(data=st.data(), causal=st.booleans(), strided=st.booleans())
def test_it_is_sdpa_with_the_mask(data: st.DataObject, causal: bool, strided: bool) -> None:
    """Holes, rows of padding alone, past keys; outputs and gradients; NaN at padding reaches nobody."""
    b, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    queries = data.draw(st.integers(1, k if causal else 12))
    keys = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=b, max_size=b))
    )
    packing = Packing(keys, queries, causal=causal)
    looks = keys[:, k - queries :] if causal else torch.ones(b, queries, dtype=torch.bool)
    q, key, value = tensors(b, queries, k, strided)
    weight = torch.randn(b, queries, 4, 6) * looks[..., None, None]

    mask = written_out(keys, queries, causal)
    sees = mask.any(-1)[:, 0] & looks
    out = scaled_dot_product_attention(q, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), mask)
    want = torch.where(sees[..., None, None], out.transpose(1, 2), 0.0)
    expected = torch.autograd.grad((want * weight).sum(), (q, key, value), allow_unused=True)

    with torch.no_grad():
        for x, real in ((q, looks), (key, keys), (value, keys)):
            x[~real[:, None].expand(x.shape[:3])] = float("nan")
    got = packing.pad(attention(*packing.pack(q, key, value), packing.segments, causal=causal))
    assert bool((got[~looks] == 0).all())
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((got * weight).sum(), (q, key, value), allow_unused=True)
    for x, gradient, other in zip((q, key, value), gradients, expected, strict=True):
        gradient, other = (torch.zeros_like(x) if g is None else g for g in (gradient, other))
        torch.testing.assert_close(gradient, other.nan_to_num(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_the_dense_mask_is_the_same_mask(queries: int, causal: bool) -> None:
    keys = torch.tensor([[False, False, True, True, True], [True, False, True, True, False], [True] * 5])
    dense, want = Packing(keys, queries, causal=causal).dense, written_out(keys, queries, causal)
    real = keys[:, 5 - queries :]
    assert torch.equal(dense[:, 0][real], want[:, 0][real])
    if causal and queries > 1:  # a query at padding sees itself
        assert bool(dense[:, 0].any(-1).all())


def test_nothing_is_taken_out_where_nothing_hides() -> None:
    packing = Packing(torch.ones(2, 5, dtype=torch.bool), 3)
    assert not packing.hides
    assert packing.indices(torch.device("cpu")) == (None, None)
    q, key, value = tensors(2, 3, 5, strided=True)
    assert packing.pack(q, key, value)[0].data_ptr() == q.data_ptr()
    assert packing.segments.queries == (3, 3)
    assert packing.segments.keys == (5, 5)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.repeat(1, 4, 1, 1),
        lambda m: m.dtype,
        lambda m: m == 0,
        lambda m: m != 0,
        lambda m: ~m,
        lambda m: torch.ones(2, 1, 2, 3) + m,
        lambda m: torch.ones(2, 1, 2, 3).masked_fill(m, 0.0),
        lambda m: torch.where(m, 0.0, 1.0),
        lambda m: torch.cat([m, m]),
    ],
)
def test_computing_with_it_is_refused(use: Any) -> None:
    with pytest.raises(TokenOpsError, match="use sdpa for this one"):
        use(Packing(torch.tensor([[False, True, True]] * 2), 2))


def test_handing_it_on_and_cutting_it() -> None:
    packing = Packing(torch.tensor([[False, True, True]] * 2), 2)
    assert torch.equal(packing[:, :, -1:, :], packing.dense[:, :, -1:, :])
    assert not hasattr(packing, "to")
    assert packing == packing
    assert copy.deepcopy(packing).segments == packing.segments
    with pytest.raises(TokenOpsError) as raised:
        packing.shape  # noqa: B018
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
