"""Which backend serves what, and what the CUDA ones hand to xformers and torch.

No kernel for CUDA runs here. In their place stand xformers' reference for CPUs, with the mask objects of
xformers, and functions with the signatures that ``varlen_attn`` had in each release.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenops import TokenOpsError, kernels
from tokenops.kernels.attention import Segments, attention, cuda, reference, varlen, xformers
from tokenops.kernels.attention.choice import BACKENDS, choose, pick
from tokenops.kernels.attention.request import Request
from tokenops.testing import check_kernel
from tokenops.testing.drawing import Draw

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
RAGGED = Segments.of([3, 5], keys=[4, 7])


# -- stand-ins -----------------------------------------------------------------------------------------------


def flash(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, scale: Any) -> Tensor:
    """What the flash kernels compute, bottom-right causal, for equal numbers of heads."""
    assert q.shape[1] == k.shape[1], "heads must be repeated or enable_gqa given"
    assert cu_q.dtype == cu_k.dtype == torch.int32
    segments = Segments.of(cu_q.diff(), cu_k.diff())
    return reference.attention(q, k, v, segments, causal=causal, scale=scale)


def varlen_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> Tensor:  # fmt: skip
    _longest(cu_seq_q, cu_seq_k, max_q, max_k)
    return flash(query, key, value, cu_seq_q, cu_seq_k, is_causal, None)


def varlen_2_11(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    _longest(cu_seq_q, cu_seq_k, max_q, max_k)
    assert window_size in ((-1, -1), (-1, 0))
    return flash(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0), scale)


def varlen_2_12(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Any = None, block_table: Any = None, num_splits: Any = None,
) -> Tensor:  # fmt: skip
    _longest(cu_seq_q, cu_seq_k, max_q, max_k)
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return flash(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0), scale)


def _longest(cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> None:
    assert (max_q, max_k) == (int(cu_q.diff().amax()), int(cu_k.diff().amax()))


RELEASES = {"2.10": varlen_2_10, "2.11": varlen_2_11, "2.12": varlen_2_12}


@pytest.fixture
def torch_release(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the ``varlen_attn`` of a release, None for none, in place of the installed one."""

    def install(function: Callable[..., Any] | None) -> None:
        module = ModuleType("torch.nn.attention.varlen")
        if function is not None:
            module.varlen_attn = function  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        varlen.function.cache_clear()

    yield install
    varlen.function.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Ampere card as far as questions go, and a free choice of device for what is computed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_not", lambda request: None)


@pytest.fixture
def xformers_on_cpu(monkeypatch: pytest.MonkeyPatch, anywhere: None) -> list[tuple[Any, ...]]:
    """xformers with its reference in place of the operator; what it is called with, strides included."""
    fmha, reason = xformers.library()
    assert reason is None
    from xformers.attn_bias_utils import ref_attention  # after xformers.library(), which quiets it

    calls: list[tuple[Any, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, scale: float | None) -> Tensor:
        calls.append((q, k, v, attn_bias, scale))
        return ref_attention(q, k, v, attn_bias, scale=scale).to(q.dtype)

    fake = SimpleNamespace(attn_bias=fmha.attn_bias, memory_efficient_attention=attend)
    monkeypatch.setattr(xformers, "library", lambda: (fake, None))
    return calls


def case(draw: Draw) -> Any:
    """Float32, so that what differs is an error; values as wide as keys, as the flash kernels want them."""
    count = draw.integer(1, 3)
    queries = [draw.choice(0, 1, 3, 17) for _ in range(count)]
    keys = [draw.choice(0, 1, 3, 17) for _ in range(count)] if draw.choice(False, True) else None
    segments, groups, d = Segments.of(queries, keys), draw.choice(1, 2), draw.choice(8, 16)
    t, s = segments.total
    q = draw.normal(t, groups * draw.choice(1, 3), d)
    k, v = draw.normal(s, groups, 2 * d).split(d, 2)
    return (q, k, v, segments), {"causal": draw.choice(False, True), "scale": draw.choice(None, 0.3)}


def forced(backend: str) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: attention(*args, **kwargs, backend=backend)


# -- xformers ------------------------------------------------------------------------------------------------


LENGTHS = [
    Segments.of([3]),
    Segments.of([3, 1, 5]),
    Segments.of([1, 2, 4], keys=[5, 2, 63]),
    Segments.of([2, 2], keys=[3, 3]),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", LENGTHS, ids=str)
def test_masks_of_xformers_are_ours(segments: Segments, causal: bool) -> None:
    theirs = xformers.bias(segments, causal, CPU).materialize(segments.total)
    assert torch.equal(theirs == 0, reference.visible(segments, causal))
    assert theirs[theirs != 0].eq(-torch.inf).all()


def test_xformers_knows_no_queries_without_keys() -> None:
    """Which is why they are left out before a backend runs."""
    with pytest.raises(ValueError, match="num_keys"):
        xformers.bias(Segments.of([4], keys=[2]), True, CPU)


def test_xformers_equals_the_reference(xformers_on_cpu: list[tuple[Any, ...]]) -> None:
    check_kernel(forced("xformers"), case, reference=reference.attention, atol=1e-5)
    for q, k, v, bias, _ in xformers_on_cpu:
        assert q.shape[0] == k.shape[0] == v.shape[0] == 1
        assert bias.q_seqinfo.min_seqlen > 0
        assert bias.k_seqinfo.min_seqlen > 0
    assert {call[0].ndim for call in xformers_on_cpu} == {4, 5}


def test_xformers_repeats_key_heads_without_a_copy(xformers_on_cpu: list[tuple[Any, ...]]) -> None:
    q, k, v = torch.randn(8, 6, 8), torch.randn(11, 2, 8), torch.randn(11, 2, 8)
    attention(q, k, v, RAGGED, causal=True, scale=0.5, backend="xformers")
    ((q5, k5, v5, bias, scale),) = xformers_on_cpu
    assert q5.shape == (1, 8, 2, 3, 8)
    assert k5.shape == v5.shape == (1, 11, 2, 3, 8)
    assert k5.stride(3) == v5.stride(3) == 0
    assert (q5.data_ptr(), k5.data_ptr(), v5.data_ptr()) == (q.data_ptr(), k.data_ptr(), v.data_ptr())
    assert type(bias).__name__ == "BlockDiagonalCausalFromBottomRightMask"
    assert scale == 0.5
    assert BACKENDS[1].run is xformers.run


def test_xformers_is_asked_for_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        raise PackageNotFoundError(name)

    for version, reason in (
        (lambda name: "0.0.36", "needs xformers 0.0.35, not 0.0.36"),
        (lambda name: "0.0.350", "needs xformers 0.0.35, not 0.0.350"),
        (found, "xformers is not installed"),
    ):
        monkeypatch.setattr(xformers, "version", version)
        xformers.library.cache_clear()
        assert xformers.library() == (None, reason)
    for version in ("0.0.35", "0.0.35.post1", "0.0.35+cu130"):
        monkeypatch.setattr(xformers, "version", lambda name, v=version: v)
        xformers.library.cache_clear()
        assert xformers.library()[1] is None
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    xformers.library.cache_clear()
    assert str(xformers.library()[1]).startswith("xformers does not import: ")
    xformers.library.cache_clear()


def test_importing_xformers_leaves_its_logger_alone() -> None:
    log = logging.getLogger("xformers")
    before = log.level
    try:
        log.setLevel(logging.INFO)
        xformers.library.cache_clear()
        xformers.library()
        assert log.level == logging.INFO
    finally:
        log.setLevel(before)


# -- varlen_attn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["2.11", "2.12"])
def test_varlen_equals_the_reference(release: str, torch_release: Any, anywhere: None) -> None:
    torch_release(RELEASES[release])
    check_kernel(forced("varlen"), case, reference=reference.attention, atol=1e-5)


def test_varlen_of_2_10_equals_the_reference_where_it_serves(torch_release: Any, anywhere: None) -> None:
    torch_release(varlen_2_10)

    def equal_lengths(draw: Draw) -> Any:
        (q, k, v, segments), options = case(draw)
        same = [n for n in segments.keys if n]
        rows = draw.normal(sum(same), *q.shape[1:])
        columns = [x[: sum(same)] for x in (k, v)]
        return (rows, *columns, Segments.of(same)), options | {"scale": None}

    check_kernel(forced("varlen"), equal_lengths, reference=reference.attention, atol=1e-5)
    q = torch.randn(8, 1, 8)
    k = torch.randn(11, 1, 8)
    out = attention(q, k, k, RAGGED, backend="varlen")
    torch.testing.assert_close(out, reference.attention(q, k, k, RAGGED))
    with pytest.raises(TokenOpsError, match="does not say where its causal mask is aligned"):
        attention(q, k, k, RAGGED, causal=True, backend="varlen")
    with pytest.raises(TokenOpsError, match="takes no scale"):
        attention(q, k, k, RAGGED, scale=0.5, backend="varlen")


def test_varlen_arguments(torch_release: Any, anywhere: None) -> None:
    """Equal lengths share one tensor, and only what must be said is said."""
    calls = []

    def record(*args: Any, **options: Any) -> Tensor:
        calls.append((args, options))
        return RELEASES["2.12"](*args, **options)

    record.__signature__ = __import__("inspect").signature(varlen_2_12)  # pyright: ignore
    torch_release(record)
    q, k = torch.randn(8, 4, 8), torch.randn(8, 2, 8)
    same = Segments.of([3, 5])
    attention(q, k, k, same, backend="varlen")
    attention(q, q, q, same, causal=True, scale=0.5, backend="varlen")
    (first, none), (_, all_) = calls
    assert first[3] is first[4]
    assert first[5:] == (5, 5)
    assert none == {"enable_gqa": True}
    assert all_ == {"scale": 0.5, "window_size": (-1, 0)}


def test_installed_varlen_has_a_signature_we_know() -> None:
    varlen.function.cache_clear()
    attend, knows = varlen.function()
    assert attend is not None
    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= knows
    assert knows & {"is_causal", "window_size"}


# -- rows in memory ------------------------------------------------------------------------------------------


def test_rows_begin_where_the_kernels_can_read_them() -> None:
    fused = torch.randn(5, 3, 4, 8)
    odd = torch.randn(5 * 33 + 1)
    assert cuda.aligned(fused[:, 1]) is not None
    for x, copied in (
        (fused[:, 1], False),
        (fused[:, 0, :1], False),
        (fused[:0, 0], False),
        (fused[..., 0].transpose(0, 1)[:, :, :2], True),
        (fused[:, 0].transpose(1, 2), True),
        (fused[:, 0].transpose(0, 1), True),
        (odd[:165].view(5, 33)[:, :32].view(5, 4, 8), True),
        (odd[1:161].view(5, 4, 8), True),
    ):
        got = cuda.aligned(x)
        assert torch.equal(got, x)
        assert (got is not x) is copied
        assert not copied or got.is_contiguous()


# -- the choice ----------------------------------------------------------------------------------------------


def ask(segments: Segments = RAGGED, **changes: Any) -> Request:
    facts: dict[str, Any] = {"device": CUDA, "dtype": torch.bfloat16, "h": 4, "g": 2, "d": 64, "e": 64}
    return Request(**facts | {"segments": segments.seen(changes.get("causal", False))} | changes)


@pytest.mark.parametrize(
    ("request_", "backend"),
    [
        (ask(), "xformers"),
        (ask(causal=True), "xformers"),
        (ask(Segments.of([5, 5]), causal=True), "sdpa"),
        (ask(Segments.of([5]), dtype=torch.float32), "sdpa"),
        (ask(Segments.of([5], keys=[9])), "sdpa"),
        (ask(Segments.of([5], keys=[9]), causal=True), "xformers"),
        (ask(Segments.of([1], keys=[9]), causal=True), "sdpa"),
        (ask(Segments.of([9], keys=[5]), causal=True), "sdpa"),
        (ask(Segments.of([5, 0, 5], keys=[5, 4, 5])), "sdpa"),
        (ask(dtype=torch.float32), "loop"),
        (ask(dtype=torch.float64), "loop"),
        (ask(e=32), "loop"),
        (ask(d=20, e=20), "loop"),
        (ask(d=264, e=264), "loop"),
        (ask(device=CPU), "loop"),
        (ask(device=torch.device("mps")), "loop"),
        (ask(Segments.of([])), "sdpa"),
    ],
)
def test_choice(request_: Request, backend: str, gpu: None) -> None:
    assert choose(request_).backend == pick(request_, None).name == backend
    assert pick(request_, "math").name == "math"


def test_choice_without_xformers_and_varlen(
    monkeypatch: pytest.MonkeyPatch, torch_release: Any, gpu: None
) -> None:
    monkeypatch.setattr(xformers, "library", lambda: (None, "xformers is not installed"))
    torch_release(varlen_2_12)
    assert choose(ask()).backend == "varlen"
    torch_release(varlen_2_10)
    assert choose(ask()).backend == "varlen"
    assert choose(ask(causal=True)).backend == "loop"
    assert choose(ask(scale=1.0)).backend == "loop"
    torch_release(None)
    assert choose(ask()) == choose(ask())
    assert str(choose(ask())).splitlines() == [
        "attention runs on loop",
        "  sdpa      no: the segments have different lengths",
        "  xformers  no: xformers is not installed",
        "  varlen    no: this torch has no varlen_attn",
        "  loop      yes",
        "  math      yes",
    ]


def test_old_cards_and_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert cuda.why_not(ask()) == "needs compute capability 8.0"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert cuda.why_not(ask()) == "not tried on ROCm"


def test_explain_computes_nothing_and_agrees_with_what_runs() -> None:
    q = torch.empty(8, 4, 8)
    k = torch.empty(11, 2, 8)
    told = kernels.explain(q, k, k, RAGGED, causal=True)
    assert told.backend == "loop"
    assert [name for name, _ in told.reasons] == ["sdpa", "xformers", "varlen", "loop", "math"]
    assert dict(told.reasons)["xformers"] == "runs on CUDA, not on cpu"
    with pytest.raises(TokenOpsError, match="5 queries"):
        kernels.explain(q, k, k, Segments.of([2, 3]))
    for name, no in told.reasons:
        if no is None:
            assert (
                attention(torch.zeros(8, 4, 8), *[torch.zeros(11, 2, 8)] * 2, RAGGED, backend=name).any() == 0
            )


def test_every_question_has_an_answer(gpu: None, torch_release: Any) -> None:
    """No combination of facts raises or leaves nobody to serve."""
    options = itertools.product(
        (CUDA, CPU),
        (torch.float32, torch.float16),
        (8, 9),
        (False, True),
        (None, 0.5),
        (RAGGED, Segments.of([])),
    )
    for release in (None, *RELEASES.values()):
        torch_release(release)
        for device, dtype, d, causal, scale, segments in options:
            told = choose(ask(segments, device=device, dtype=dtype, d=d, e=d, causal=causal, scale=scale))
            assert dict(told.reasons)[told.backend] is None
