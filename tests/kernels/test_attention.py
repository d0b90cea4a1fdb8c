"""Attention on packs: outputs and gradients of the reference, and nothing leaks between segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokenops import TokenOpsError
from tokenops.kernels.attention import Segments, attention, reference
from tokenops.testing import check_kernel
from tokenops.testing.drawing import Draw

NAN = float("nan")
SIZES = (0, 1, 3, 63, 65)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALES = (torch.finfo(torch.float32).tiny, 0.3, 1)


def lie(x: Tensor, how: str) -> Tensor:
    """The same numbers in other memory: between NaN, heads first, or backwards in it."""
    n, h, d = x.shape
    if how == "between":
        buffer = torch.full((n + 2, h + 1, 2 * d + 1), NAN, dtype=x.dtype)
        buffer[1 : n + 1, :h, : 2 * d : 2] = x
        return buffer[1 : n + 1, :h, : 2 * d : 2]
    return x.transpose(0, 1).contiguous().transpose(0, 1) if how == "heads first" else x


def pack(draw: Draw, segments: Segments, *, dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Tensor]:
    """Queries, keys and values; what nobody may read is NaN."""
    groups, d, e = draw.choice(1, 2), draw.choice(1, 4, 7, 16), draw.choice(None, 1, 5)
    heads, dtype = groups * draw.choice(1, 2, 3), draw.choice(*dtypes)
    (t, s), e = segments.total, e or d
    q, k, v = draw.normal(t, heads, d), draw.normal(s, groups, d), draw.normal(s, groups, e)
    for (rows, columns), m, n in zip(segments.spans, segments.queries, segments.keys, strict=True):
        if m == 0 or n == 0:
            q[rows], k[columns], v[columns] = NAN, NAN, NAN
    how = draw.choice("plainly", "heads first", "between")
    return [lie(x.to(dtype), how) for x in (q, k, v)]


def case(draw: Draw) -> Any:
    count = draw.integer(0, 4)
    queries = [draw.choice(*SIZES) for _ in range(count)]
    keys = [draw.choice(*SIZES) for _ in range(count)] if draw.choice(False, True) else None
    segments = Segments.of(queries, keys)
    options = {"causal": draw.choice(False, True), "scale": draw.choice(None, *SCALES)}
    return (*pack(draw, segments), segments), options


def alike(draw: Draw) -> Any:
    """What plain SDPA serves: one length, and no causal mask to write out."""
    causal, m, b = draw.choice(False, True), draw.choice(1, 3, 63), draw.integer(1, 3)
    n = m if causal and m > 1 else draw.choice(1, 3, 65)
    segments = Segments.of([m] * b, [n] * b)
    return (*pack(draw, segments), segments), {"causal": causal}


def forced(backend: str) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: attention(*args, **kwargs, backend=backend)


def test_equals_the_reference() -> None:
    """In half precision the gradients of logits are differences that may cancel: ``terms``."""
    check_kernel(attention, case, atol=1e-5, terms=1)


@pytest.mark.parametrize(
    ("backend", "case"), [("sdpa", alike), ("loop", case), ("loop", alike), ("math", case)]
)
def test_every_cpu_backend_equals_the_reference(backend: str, case: Any) -> None:
    check_kernel(forced(backend), case, reference=reference.attention, atol=1e-5, terms=1)


@pytest.mark.parametrize("causal", [False, True])
def test_reference_equals_one_dense_masked_call(causal: bool) -> None:
    """The whole pack as one sequence under the block-diagonal mask."""
    segments = Segments.of([3, 5, 1], keys=[4, 5, 6])
    leaves = [
        torch.randn(n, h, 7, dtype=torch.float64, requires_grad=True) for n, h in ((9, 4), (15, 2), (15, 2))
    ]
    weight = torch.randn(9, 4, 7, dtype=torch.float64)
    q, k, v = (x.transpose(0, 1) for x in leaves)
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    mask = reference.visible(segments, causal)
    dense = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
    out = reference.attention(*leaves, segments, causal=causal)
    torch.testing.assert_close(out, dense)
    for a, b in zip(
        torch.autograd.grad(out, leaves, weight), torch.autograd.grad(dense, leaves, weight), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["loop", "math", "sdpa", None])
@pytest.mark.parametrize("causal", [False, True])
def test_other_segments_may_hold_anything(backend: str | None, causal: bool) -> None:
    """NaN in the middle segment changes no bit of the others, in outputs and gradients."""
    segments = Segments.of([6, 6, 6]) if backend == "sdpa" else Segments.of([6, 3, 5], keys=[6, 4, 7])
    (t, s), (rows, columns) = segments.total, segments.spans[1]
    clean = [torch.randn(t, 4, 8), torch.randn(s, 2, 8), torch.randn(s, 2, 8), torch.randn(t, 4, 8)]
    poisoned = [x.clone() for x in clean]
    for x, where in zip(poisoned, (rows, columns, columns, rows), strict=True):
        x[where] = NAN
    found = []
    for *leaves, weight in (clean, poisoned):
        leaves = [x.requires_grad_() for x in leaves]
        out = attention(*leaves, segments, causal=causal, backend=backend)
        grads = torch.autograd.grad(out, leaves, weight)
        found.append([out.detach(), *grads])
    for a, b, where in zip(*found, (rows, rows, columns, columns), strict=True):
        outside = torch.ones(len(a), dtype=torch.bool)
        outside[where] = False
        assert torch.equal(a[outside], b[outside])
        assert b[where].isnan().all()


@pytest.mark.parametrize("backend", ["loop", "math"])
def test_queries_without_keys_give_zero(backend: str) -> None:
    """Causal with more queries than keys, no keys at all, and keys without queries; all hold NaN."""
    segments = Segments.of([4, 2, 0, 1], keys=[2, 0, 3, 1])
    q, k, v = torch.randn(7, 1, 3), torch.randn(6, 1, 3), torch.randn(6, 1, 3)
    q[:2], q[4:6], k[2:5], v[2:5] = NAN, NAN, NAN, NAN
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention(q, k, v, segments, causal=True, backend=backend)
    assert out[[0, 1, 4, 5]].eq(0).all()
    torch.testing.assert_close(out[[2, 6]], v[[0, 5]])
    out.sum().backward()
    for x, unread in zip(leaves, ([0, 1, 4, 5], [2, 3, 4], [2, 3, 4]), strict=True):
        assert x.grad is not None
        assert x.grad[unread].eq(0).all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("backend", [None, "sdpa", "loop", "math"])
@pytest.mark.parametrize("lengths", [((), ()), ((0, 0), (0, 0)), ((2,), (0,)), ((0,), (3,))])
def test_nothing_to_see(backend: str | None, lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    segments = Segments(*lengths)
    t, s = segments.total
    q, k, v = (
        torch.full(size, NAN, dtype=torch.bfloat16, requires_grad=True)
        for size in ((t, 4, 3), (s, 2, 3), (s, 2, 5))
    )
    out = attention(q, k, v, segments, causal=True, backend=backend)
    assert out.shape == (t, 4, 5)
    assert out.dtype == torch.bfloat16
    assert not out.any()
    out.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert not x.grad.any()


def test_gradients_are_exact() -> None:
    segments = Segments.of([2, 3, 1], keys=[3, 2, 1])
    q, k, v = (
        torch.randn(6, h, d, dtype=torch.float64, requires_grad=True) for h, d in ((2, 3), (1, 3), (1, 2))
    )
    for backend in ("loop", "math"):
        assert torch.autograd.gradcheck(
            lambda q, k, v, b=backend: attention(q, k, v, segments, causal=True, scale=0.7, backend=b),
            (q, k, v),
        )


def test_a_segment_does_not_depend_on_the_others() -> None:
    segments = Segments.of([5, 9], keys=[8, 9])
    q, k, v = torch.randn(14, 2, 4), torch.randn(17, 2, 4), torch.randn(17, 2, 4)
    whole = attention(q, k, v, segments, causal=True)
    parts = [
        attention(q[r], k[c], v[c], Segments.of([m], [n]), causal=True, backend="loop")
        for (r, c), m, n in zip(segments.spans, segments.queries, segments.keys, strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_padded_batch_through_its_mask() -> None:
    """Packing by the padding mask equals SDPA under that mask, on real tokens."""
    mask = torch.tensor([[False, True, True, True], [True, True, True, True], [False, False, False, True]])
    q, k, v = (torch.randn(3, 4, 2, 8) for _ in range(3))
    out = attention(q[mask], k[mask], v[mask], Segments.from_mask(mask), causal=True)
    hidden = mask[:, None, None] & torch.ones(4, 4, dtype=torch.bool).tril()
    padded = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=hidden)
    torch.testing.assert_close(out, padded.transpose(1, 2)[mask])


def test_compiles_without_a_break() -> None:
    segments = Segments.of([3, 5, 2], keys=[3, 5, 0])
    q, k, v = torch.randn(10, 4, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    for scale in (None, 0.5):
        out = attention(q, k, v, segments, causal=True, scale=scale)
        assert torch.equal(compiled(q, k, v, segments, causal=True, scale=scale), out)


def test_runs_on_meta_tensors() -> None:
    q = torch.empty(5, 4, 8, device="meta")
    out = attention(q, q[:, :2], q[:, :2], Segments.of([2, 3]))
    assert out.shape == q.shape
    assert out.device.type == "meta"


def _call(**changes: Any) -> Any:
    q, k = torch.zeros(5, 4, 8), torch.zeros(5, 2, 8)
    given = {"q": q, "k": k, "v": k, "segments": Segments.of([2, 3])} | changes
    return attention(**given)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"q": torch.zeros(1, 5, 4, 8)}, r"q \(t h d\)"),
        ({"q": torch.zeros(5, 4, 7)}, r"q \(t h d\)"),
        ({"v": torch.zeros(4, 2, 8)}, r"q \(t h d\)"),
        ({"q": torch.zeros(5, 3, 8)}, "multiple of the key heads"),
        ({"k": torch.zeros(5, 0, 8), "v": torch.zeros(5, 0, 8)}, "multiple of the key heads"),
        ({"segments": Segments.of([2, 2])}, "4 queries and 4 keys, got 5 and 5 rows"),
        ({"segments": [2, 3]}, "Segments, got list"),
        ({"q": torch.zeros(5, 4, 8).double()}, "one dtype"),
        ({"q": torch.zeros(5, 4, 8).long()}, "a dtype of"),
        ({"q": torch.zeros(5, 4, 8, device="meta")}, "one device"),
        ({"q": None}, r"q, k and v as tensors, got NoneType, Tensor, Tensor"),
        ({"k": [1.0]}, r"q, k and v as tensors, got Tensor, list, Tensor"),
        ({"v": "v"}, r"q, k and v as tensors, got Tensor, Tensor, str"),
        ({"segments": None}, "Segments, got NoneType"),
        ({"causal": None}, "causal: a bool, got None"),
        ({"causal": torch.tensor(True)}, r"causal: a bool, got tensor\(True\)"),
        ({"backend": 3}, "backend: sdpa, xformers, varlen, loop, math, got 3"),
        ({"backend": "triton"}, "backend: sdpa, xformers, varlen, loop, math"),
        ({"backend": "xformers"}, r"serves \(xformers: runs on CUDA, not on cpu\)"),
        ({"backend": "sdpa"}, r"serves \(sdpa: the segments have different lengths\)"),
    ],
)
def test_bad_input(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(TokenOpsError, match=f"^attention: .*{match}"):
        _call(**changes)


# float32 rounds the small ones to 0 and the large ones to inf
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "scale", [0, -0.3, NAN, float("inf"), 1e-50, 5e-324, 1e50, 2**200, True, "a", torch.tensor(0.3)]
)
def test_scales_under_which_nothing_stays_hidden(scale: Any, causal: bool) -> None:
    """A kernel that multiplies the -inf of a hidden key by 0 or less gives NaN."""
    for backend in (None, "loop", "math"):
        with pytest.raises(TokenOpsError, match="attention: scale: None or a positive number"):
            _call(scale=scale, causal=causal, backend=backend)


def test_segments() -> None:
    segments = Segments.of([3, 0], keys=torch.tensor([1, 2]))
    assert segments == Segments((3, 0), (1, 2))
    assert hash(segments) == hash(Segments((3, 0), (1, 2)))
    assert len(segments) == 2
    assert segments.total == (3, 3)
    assert segments.longest == (3, 2)
    assert segments.spans == [(slice(0, 3), slice(0, 1)), (slice(3, 3), slice(1, 3))]
    assert Segments.of([]).longest == (0, 0)
    mask = torch.tensor([[True, False], [True, True]])
    assert Segments.from_mask(mask[:1], mask[1:]) == Segments((1,), (2,))
    assert segments.seen(False) == Segments((3,), (1,))
    assert segments.seen(True) == Segments((1,), (1,))
    assert [index.tolist() for index in segments.seen_rows(True)] == [[2], [0]]
    plain = Segments.of([2, 1])
    assert plain.seen(True) is plain


def test_cumulative_lengths_are_made_once_and_may_be_trained_with() -> None:
    cpu, segments = torch.device("cpu"), Segments.of([2, 3], keys=[1, 4])
    with torch.inference_mode():
        queries, keys = segments.cumulative(cpu)
    assert (queries.tolist(), keys.tolist()) == ([0, 2, 5], [0, 1, 5])
    assert queries.dtype == keys.dtype == torch.int32
    assert not queries.is_inference()
    assert segments.cumulative(cpu)[0] is queries
    same = Segments.of([2, 3]).cumulative(cpu)
    assert same[0] is same[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Segments((1, -1), (1, 1)),
        lambda: Segments((1, 2), (1,)),
        lambda: Segments([1], [1]),  # pyright: ignore[reportArgumentType]
        lambda: Segments.of([1.0]),  # pyright: ignore[reportArgumentType]
        lambda: Segments.of([True]),
        lambda: Segments.of(torch.tensor([1.0])),
        lambda: Segments.of(torch.tensor(3)),
        lambda: Segments.of(3),  # pyright: ignore[reportArgumentType]
        lambda: Segments.from_mask(torch.ones(2, 3)),
        lambda: Segments.from_mask([[True]]),  # pyright: ignore[reportArgumentType]
        lambda: Segments.from_mask(torch.ones(3, dtype=torch.bool)),
        lambda: Segments.from_mask(torch.ones(2, 3).bool(), torch.ones(1, 3).bool()),
    ],
)
def test_bad_segments(make: Callable[[], Segments]) -> None:
    with pytest.raises(TokenOpsError, match="Segments"):
        make()
