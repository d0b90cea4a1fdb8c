"""Attention on a ragged batch: packed segments against padding and against one block-diagonal mask.

    python benchmarks/ragged_attention.py --out benchmarks/results/ragged_attention.json

Four sequences of 200 to 1,500 tokens in even steps, and a tenth of that, with 8 heads of width 64 in float32
on a CPU with one thread:

* ``segments``: ``tokenops.kernels.attention`` on the pack, no padding;
* ``padded``: SDPA on the batch padded to the longest, under a bool mask that hides padding, made beforehand;
* ``packed mask``: SDPA on the pack under a block-diagonal bool mask, made beforehand.

All start from tensors that lie as they need them. A ratio is the processor time over that of ``segments`` in
the same round, with quartiles; ``pairs`` is the ratio of the query-key pairs, the ratio to expect if a pair
costs the same everywhere. Causal ``segments`` counts the pairs that are seen, because SDPA's own causal form
skips blocks that are hidden; under a mask nothing is skipped. The bar is about the long sequences: short ones
show where a call per segment costs more than padding does. On a GPU, ``gpu_prefill.py`` has the backends side
by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from tokenops.kernels import explain
from tokenops.kernels.attention import Segments, attention, reference

FULL = {"lengths": [[200, 633, 1067, 1500], [20, 63, 107, 150]], "heads": 8, "width": 64}
SMOKE = {"lengths": [[5, 16, 27, 38], [3, 5, 8, 10]], "heads": 4, "width": 8}
BAR = 2.0
Contender = tuple[Callable[..., Tensor], list[Tensor], Tensor, Callable[[Tensor], Tensor], float]


def contenders(pack: list[Tensor], weight: Tensor, segments: Segments, causal: bool) -> dict[str, Contender]:
    """Name -> function, its inputs and incoming gradient, what packs its result again, and pairs."""
    lengths, gqa = segments.queries, pack[0].shape[1] != pack[1].shape[1]
    longest, total = segments.longest[0], segments.total[0]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    hidden = real[:, None, None]
    if causal:
        hidden = hidden & torch.ones(longest, longest, dtype=torch.bool).tril()
    block = reference.visible(segments, causal)

    def padded(x: Tensor) -> Tensor:
        return pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2).contiguous()

    def whole(x: Tensor) -> Tensor:
        return x.transpose(0, 1)[None].contiguous()

    def masked(mask: Tensor) -> Callable[..., Tensor]:
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)

    own = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    written = [padded(x) for x in pack], padded(weight)
    return {
        "segments": (
            lambda q, k, v: attention(q, k, v, segments, causal=causal),
            pack,
            weight,
            lambda out: out,
            1.0,
        ),
        "padded": (
            masked(hidden),
            *written,
            lambda out: out.transpose(1, 2)[real],
            len(lengths) * longest**2 / own,
        ),
        "packed mask": (
            masked(block),
            [whole(x) for x in pack],
            whole(weight),
            lambda out: out[0].transpose(0, 1),
            total**2 / own,
        ),
    }


def timed(contender: Contender, backward: bool) -> Callable[[], float]:
    """Processor seconds of a pass."""
    function, inputs, weight = contender[:3]
    leaves = [x.detach().clone().requires_grad_(backward) for x in inputs]

    def call() -> float:
        start = time.process_time()
        out = function(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, weight)
        return time.process_time() - start

    return call


def apart(found: dict[str, Contender]) -> float:
    """Largest difference between the outputs of any contender and ``segments``."""
    outs = {name: back(function(*inputs)) for name, (function, inputs, _, back, _) in found.items()}
    return max(float((out - outs["segments"]).abs().max()) for out in outs.values())


def rows_of(lengths: list[int], heads: int, groups: int, d: int, rounds: int) -> list[dict[str, Any]]:
    """Causal and not, forward and both ways, contenders in turn."""
    segments, rows = Segments.of(lengths), []
    pack = [torch.randn(segments.total[0], h, d) for h in (heads, groups, groups)]
    weight = torch.randn_like(pack[0])
    for causal in (False, True):
        found = contenders(pack, weight, segments, causal)
        setting = {"longest": max(lengths), "kv_heads": groups, "causal": causal}
        setting |= {"backend": explain(*pack, segments, causal=causal).backend, "apart": apart(found)}
        for backward in (False, True):
            took = in_turn({name: timed(c, backward) for name, c in found.items()}, rounds)
            for name, contender in found.items():
                row = {**setting, "backward": backward, "form": name, "pairs": round(contender[4], 2)}
                row["ms"] = spread(1e3 * took[name])
                rows.append(row | {"ratio": spread(took[name] / took["segments"])})
    return rows


def measure(size: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Every setting; the bar is about the padded form of the first lengths."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = size["heads"]
    rows = [
        row
        for lengths in size["lengths"]
        for groups in (heads, heads // 4)
        for row in rows_of(lengths, heads, groups, size["width"], rounds)
    ]
    longest = max(size["lengths"][0])
    padded = [row["ratio"][1] for row in rows if row["form"] == "padded" and row["longest"] == longest]
    settings = machine() | size | {"rounds": rounds, "dtype": "float32"}
    bar = {"what": "padded / segments", "wanted": BAR, "least": min(padded), "most": max(padded)}
    return {"settings": settings, "bars": [bar], "rows": rows}


def show(result: dict[str, Any]) -> None:
    """As a table."""
    table = Table(title="ragged attention: processor time over that of segments")
    columns = ("longest", "kv_heads", "causal", "backward", "form", "pairs")
    for column in (*columns, "ms", "ratio", "quartiles"):
        table.add_column(column)
    for row in result["rows"]:
        low, middle, high = row["ratio"]
        cells = [str(row[column]) for column in columns]
        table.add_row(*cells, f"{row['ms'][1]:.4g}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a few tokens, one round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    try:
        result = measure(SMOKE, 1) if options.smoke else measure(FULL, options.rounds)
    finally:
        torch.set_num_threads(threads)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
