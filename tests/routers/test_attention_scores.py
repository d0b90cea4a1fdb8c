"""Scores from chunks of the attention map equal those from the whole map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from routers.kit import drawn
from torch import Tensor

from tokenops import TokenOpsError
from tokenops.routers import attention_scores
from tokenops.routers.low_rank import reference
from tokenops.routers.low_rank import scores as module
from tokenops.testing.drawing import Draw, assert_close, hold


def test_equals_the_whole_map_at_any_chunk_size() -> None:
    """GQA, padding anywhere, restricted rows, causal or not, rows without text or visual tokens."""

    def law(draw: Draw) -> None:
        q, k, options = drawn(draw)
        got = attention_scores(q, k, **options, chunk=draw.choice(None, 1, 2, 3, 100))
        assert_close(got, reference.attention_scores(q, k, **options), 1e-12, exact_dtype=True)

    hold(law)


def test_gradients_equal_those_of_the_whole_map() -> None:
    def law(draw: Draw) -> None:
        q, k, options = drawn(draw)
        weight = draw.normal(*options["visual"].shape, dtype=torch.float64)
        both = []
        for function, extra in ((attention_scores, {"chunk": 2}), (reference.attention_scores, {})):
            leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
            total = (function(*leaves, **options, **extra) * weight).sum()
            zero = sum(leaf.sum() * 0 for leaf in leaves)
            both.append(torch.autograd.grad(total + zero, leaves))
        for got, expected in zip(*both, strict=True):
            assert_close(got, expected, 1e-12)

    hold(law)


def test_second_derivatives() -> None:
    q, k = (torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    visual = torch.tensor([[False, True, True, True, False]])

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return attention_scores(q, k, visual=visual, chunk=2)

    assert torch.autograd.gradcheck(scores, (q, k))
    assert torch.autograd.gradgradcheck(scores, (q, k))


def test_padding_may_hold_anything() -> None:
    def law(draw: Draw) -> None:
        q, k, options = drawn(draw)
        mask = options["mask"] = draw.mask(*options["visual"].shape)
        filler = draw.choice(float("nan"), float("inf"), 1e300)
        results = []
        for value in (0.0, filler):
            leaves = [t.masked_fill(~mask[:, None, :, None], value).requires_grad_() for t in (q, k)]
            scores = attention_scores(*leaves, **options, chunk=2)
            asked = scores.requires_grad  # False where no row is to be averaged over
            gradients = torch.autograd.grad(scores.sum(), leaves) if asked else ()
            results.append([scores.detach(), *gradients])
        for clean, dirty in zip(*results, strict=True):
            assert_close(dirty, clean, 0)
            assert clean.isfinite().all()
        assert not results[1][0][~mask].any()

    hold(law)


def test_left_padding_equals_right_padding() -> None:
    q, k = torch.randn(1, 2, 6, 4, dtype=torch.float64), torch.randn(1, 2, 6, 4, dtype=torch.float64)
    visual = torch.tensor([[True, True, False, True, False, False]])
    alone = attention_scores(q, k, visual=visual)
    for left in (0, 1, 3):
        room = (left, 3 - left)
        wide_q, wide_k = (torch.nn.functional.pad(t, (0, 0, *room), value=5.0) for t in (q, k))
        places = torch.nn.functional.pad(visual, room, value=True)
        mask = torch.nn.functional.pad(torch.ones_like(visual), room)
        scores = attention_scores(wide_q, wide_k, visual=places, mask=mask)
        assert_close(scores[:, left : left + 6], alone, 1e-14)


def test_rows_do_not_know_each_other() -> None:
    def law(draw: Draw) -> None:
        q, k, options = drawn(draw)
        options["mask"] = draw.mask(*options["visual"].shape)
        scores = attention_scores(q, k, **options)
        order = draw.permutation(len(q))
        moved = {n: v[order] if isinstance(v, Tensor) else v for n, v in options.items()}
        assert_close(attention_scores(q[order], k[order], **moved), scores[order], 1e-14)
        row = {n: v[:1] if isinstance(v, Tensor) else v for n, v in options.items()}
        assert_close(attention_scores(q[:1], k[:1], **row), scores[:1], 1e-14)

    hold(law)


def test_rows_nobody_asked_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    piece = module._piece

    def counting(q: Tensor, *rest: Any) -> Tensor:
        rows.append(q.shape[2])
        return piece(q, *rest)

    monkeypatch.setattr(module, "_piece", counting)
    q = torch.randn(2, 1, 40, 4)
    queries = torch.zeros(2, 40, dtype=torch.bool)
    queries[0, 30:34] = queries[1, 33] = True
    attention_scores(q, q, visual=torch.ones(2, 40, dtype=torch.bool), queries=queries, chunk=3)
    assert sum(rows) == 4


def test_half_precision_is_computed_in_float32() -> None:
    q, k = (torch.randn(1, 4, 60, 16) for _ in range(2))
    visual = torch.rand(1, 60) < 0.7
    half = q.bfloat16(), k.bfloat16()
    scores = attention_scores(*half, visual=visual)
    assert scores.dtype == torch.float32
    exact = reference.attention_scores(*(t.double() for t in half), visual=visual)
    assert_close(scores, exact, 1e-5 * float(exact.max()))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(attention_scores(*half, visual=visual), scores, 0)


class _Probe:
    """Remembers the largest tensor any operation makes."""

    def __init__(self) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        probe, self.most = self, 0

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                for value in out if isinstance(out, tuple | list) else (out,):
                    if isinstance(value, Tensor):
                        probe.most = max(probe.most, value.untyped_storage().nbytes() // value.itemsize)
                return out

        self.mode = Mode()


@pytest.mark.parametrize("train", [False, True])
def test_8000_tokens_never_make_a_map(train: bool) -> None:
    """The largest tensor is one chunk of the map, in the backward pass too, and nothing of it is saved."""
    length = 8064
    q, k = (torch.randn(1, 1, length, 8, requires_grad=train) for _ in range(2))
    visual = torch.arange(length)[None] < 8000
    # with gradients, on the last quarter only, to be quick: its rows see all keys
    queries = torch.arange(length)[None] >= 6000 if train else None
    probe, saved = _Probe(), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes() // tensor.itemsize)
        return tensor

    with probe.mode, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = attention_scores(q, k, visual=visual, queries=queries)
        if train:
            scores.sum().backward()
    assert 0 < probe.most <= module.NUMBERS < length**2 // 200
    # inputs and weights; the hooks inside a checkpoint see nothing
    assert not train or max(saved) <= 8 * length
    assert_close(scores[0, 8000:], torch.zeros(64), 0)


def test_chunks_of_many_heads_are_bounded() -> None:
    q = torch.empty(2, 32, 8000, 4)
    chunk = module._default_chunk(q)
    assert chunk == module.ROWS
    assert chunk < 8000 // 100


def test_compiles() -> None:
    q, k = torch.randn(2, 4, 12, 4), torch.randn(2, 2, 12, 4)
    visual, mask = torch.rand(2, 12) < 0.5, torch.rand(2, 12) < 0.9

    def run(q: Tensor, k: Tensor) -> Tensor:
        return attention_scores(q, k, visual=visual, mask=mask, chunk=5)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_close(compiled(q, k), run(q, k), 1e-7)


def test_bad_input() -> None:
    q, visual = torch.zeros(2, 4, 3, 8), torch.zeros(2, 3, dtype=torch.bool)
    calls = [
        lambda: attention_scores(q[0], q[0], visual=visual),
        lambda: attention_scores(q.long(), q, visual=visual),
        lambda: attention_scores(q, q[..., :4], visual=visual),
        lambda: attention_scores(q, q[:, :3], visual=visual),
        lambda: attention_scores(q, q[:, :0], visual=visual),
        lambda: attention_scores(q, q.to("meta"), visual=visual),
        lambda: attention_scores(q, q, visual=visual.float()),
        lambda: attention_scores(q, q, visual=visual, mask=visual[:1]),
        lambda: attention_scores(q, q, visual=visual, queries=visual[:, :1]),
        *(lambda c=c: attention_scores(q, q, visual=visual, chunk=c) for c in (0, -1, 2.0, True)),
    ]
    for call in calls:
        with pytest.raises(TokenOpsError, match="attention_scores"):
            call()
