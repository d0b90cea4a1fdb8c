"""Attention on packed ragged batches, backend beside backend; a part of ``gpu_prefill.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from interleaved import in_turn, spread
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokenops.kernels.attention import Segments, attention, explain

BATCHES = (1, 4, 16)
SHORTEST, LONGEST = 200, 1500
HEADS = 28, 4, 4  # queries, keys, values of Qwen2.5-VL-7B
WIDTH = 128
REPEATS = 10  # calls per measurement, so that synchronising counts little
NEVER = ("math",)  # the reference: a loop in float32, for tests


def lengths_of(batch: int, small: bool) -> list[int]:
    """Spread evenly over 200 … 1,500, in a fixed disorder; one sequence has the middle length."""
    scale = 25 if small else 1
    even = torch.linspace(SHORTEST, LONGEST, batch + 2)[1:-1] / scale
    return even[torch.randperm(batch, generator=torch.Generator().manual_seed(0))].int().tolist()


def padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Callable[[], Tensor]:
    """SDPA on a left-padded batch with a causal mask over real tokens, as transformers runs it.

    With a mask its key heads are repeated: kernels that take a mask do not share them.
    """
    longest = max(lengths)

    def rows(x: Tensor) -> Tensor:
        out = x.new_zeros(len(lengths), longest, *x.shape[1:])
        for i, part in enumerate(x.split(lengths)):
            out[i, longest - len(part) :] = part
        return out.transpose(1, 2)

    columns = torch.arange(longest, device=q.device)
    real = columns >= longest - torch.tensor(lengths, device=q.device)[:, None]
    own = torch.eye(longest, dtype=torch.bool, device=q.device)
    # a padded query sees itself, so that no softmax runs over nothing
    mask = (own.new_ones(longest, longest).tril() & real[:, None, :] | own)[:, None]
    q, k, v = rows(q), rows(k), rows(v)
    groups = q.shape[1] // k.shape[1]

    def call() -> Tensor:
        every = (x.repeat_interleave(groups, 1) for x in (k, v))
        return scaled_dot_product_attention(q, *every, attn_mask=mask)

    return call


def attention_rows(
    device: torch.device,
    dtype: torch.dtype,
    small: bool,
    rounds: int,
    seconds: Callable[[Callable[[], Any]], float],
) -> list[dict[str, Any]]:
    """Milliseconds of a call, causal and forward, and how many times faster than the padded batch."""
    rows: list[dict[str, Any]] = []
    heads, width = ((2, 1, 1), 8) if small else (HEADS, WIDTH)
    for batch in BATCHES:
        lengths = lengths_of(batch, small)
        segments, total = Segments.of(lengths), sum(lengths)
        torch.manual_seed(0)
        q, k, v = (torch.randn(total, h, width, device=device, dtype=dtype) for h in heads)
        calls = {"padded sdpa": padded(q, k, v, lengths)}
        choice, refused = explain(q, k, v, segments, causal=True), {}
        for name, reason in choice.reasons:
            if reason is not None:
                refused[name] = reason
            elif name not in NEVER:
                calls[name] = lambda n=name: attention(q, k, v, segments, causal=True, backend=n)  # noqa: B023
        apart = check(calls, lengths)

        def repeated(call: Callable[[], Any]) -> float:
            return seconds(lambda: [call() for _ in range(REPEATS)]) / REPEATS

        with torch.no_grad():
            timed = {name: lambda call=call: repeated(call) for name, call in calls.items()}
            took = in_turn(timed, rounds)
        for name in calls:
            row: dict[str, Any] = {
                "batch": batch,
                "tokens": total,
                "backend": name,
                "ms": spread(1e3 * took[name]),
            }
            row |= {"speedup": spread(took["padded sdpa"] / took[name]), "apart": apart[name]}
            rows.append(row | {"chosen": name == choice.backend})
        rows += [{"batch": batch, "tokens": total, "backend": n, "failed": why} for n, why in refused.items()]
    return rows


def check(calls: dict[str, Callable[[], Tensor]], lengths: list[int]) -> dict[str, float]:
    """How far every backend is from the padded batch, over the largest value."""
    with torch.no_grad():
        whole = calls["padded sdpa"]().transpose(1, 2)
        rows = torch.cat([row[len(row) - n :] for row, n in zip(whole, lengths, strict=True)]).float()
        most = rows.abs().max()
        found = {n: (c().float() - rows).abs().max() / most for n, c in calls.items() if n != "padded sdpa"}
    return {"padded sdpa": 0.0} | {name: float(value) for name, value in found.items()}
