"""Attention on a ragged batch: packed segments against padding and against one block-diagonal mask.

    python benchmarks/ragged_attention.py --out benchmarks/results/ragged_attention.json

Four sequences of 200 to 1,500 tokens in even steps, and a tenth of that, with 8 heads of width 64 in float32
on a CPU with one thread:

* ``segments``: ``tokenops.kernels.attention`` on the pack, no padding;
* ``segments incl. packing``: the same from padded tensors (b h n d) to a padded result, as every layer of a
  model pays for it: padding is taken out and put back, where it lies is known beforehand;
* ``padded``: SDPA on the batch padded to the longest, under a bool mask that hides padding, made beforehand.
  It serves padding on any side;
* ``padded right, is_causal``: the same without a mask, in causal rows only. With all padding on the right no
  real token sees any, so it is exact at real tokens; with padding on the left, as in generation, it is not;
* ``packed mask``: SDPA on the pack under a block-diagonal bool mask, made beforehand.

All start from tensors that lie as they need them. A ratio is the processor time over that of ``segments`` in
the same round, with quartiles; ``pairs`` is the ratio of the query-key pairs, the ratio to expect if a pair
costs the same everywhere. Causal ``segments`` and ``is_causal`` count the pairs that are seen, because SDPA's
own causal form skips blocks that are hidden; under a mask nothing is skipped, which is a part of what
``padded`` loses in the causal rows. The bar is about ``padded`` and the long sequences: short ones show where
a call per segment costs more than padding does. On a GPU, ``gpu_prefill.py`` has the backends side by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from interleaved import in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from tokenops.integrations.packing import Packing
from tokenops.kernels import explain
from tokenops.kernels.attention import Segments, attention, reference

FULL = {"lengths": [[200, 633, 1067, 1500], [20, 63, 107, 150]], "heads": 8, "width": 64}
SMOKE = {"lengths": [[5, 16, 27, 38], [3, 5, 8, 10]], "heads": 4, "width": 8}
BAR = 2.0


class Contender(NamedTuple):
    """A way to compute it: inputs and incoming gradient as it needs them, and what packs its result again."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    weight: Tensor
    packed: Callable[[Tensor], Tensor]
    pairs: float


def contenders(pack: list[Tensor], weight: Tensor, segments: Segments, causal: bool) -> dict[str, Contender]:
    """Every form by name, with its pairs over those of ``segments``."""
    lengths, longest, total = segments.queries, segments.longest[0], segments.total[0]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    hidden, packing = real[:, None, None], Packing(real, longest)
    if causal:
        hidden = hidden & torch.ones(longest, longest, dtype=torch.bool).tril()

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = packing.pack(q, k, v)
        return packing.pad(attention(q, k, v, packing.segments, causal=causal)).transpose(1, 2)

    def sdpa(**how: Any) -> Callable[..., Tensor]:
        gqa = pack[0].shape[1] != pack[1].shape[1]
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **how)

    def seen(n: int) -> int:
        return n * (n + 1) // 2 if causal else n * n

    own, batch = sum(map(seen, lengths)), len(lengths)
    rows = [pad_sequence(list(x.split(lengths)), batch_first=True) for x in (*pack, weight)]
    *padded, padded_weight = (x.transpose(1, 2).contiguous() for x in rows)
    *whole, whole_weight = (x.transpose(0, 1)[None].contiguous() for x in (*pack, weight))

    def from_padded(function: Callable[..., Tensor], pairs: int) -> Contender:
        return Contender(function, padded, padded_weight, lambda y: y.transpose(1, 2)[real], pairs / own)

    direct = partial(attention, segments=segments, causal=causal)
    block = sdpa(attn_mask=reference.visible(segments, causal))
    found = {
        "segments": Contender(direct, pack, weight, lambda y: y, 1.0),
        "segments incl. packing": from_padded(packed, own),
        "padded": from_padded(sdpa(attn_mask=hidden), batch * longest**2),
        "packed mask": Contender(block, whole, whole_weight, lambda y: y[0].transpose(0, 1), total**2 / own),
    }
    if causal:
        found["padded right, is_causal"] = from_padded(sdpa(is_causal=True), batch * seen(longest))
    return found


def timed(contender: Contender, backward: bool) -> Callable[[], float]:
    """Processor seconds of a pass."""
    leaves = [x.detach().clone().requires_grad_(backward) for x in contender.inputs]

    def call() -> float:
        start = time.process_time()
        out = contender.function(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, contender.weight)
        return time.process_time() - start

    return call


def apart(found: dict[str, Contender]) -> float:
    """Largest difference between the outputs of any contender and ``segments``."""
    outs = {name: c.packed(c.function(*c.inputs)) for name, c in found.items()}
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
                row = {**setting, "backward": backward, "form": name, "pairs": round(contender.pairs, 2)}
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
    bar = {"what": "padded under a mask / segments", "wanted": BAR, "least": min(padded), "most": max(padded)}
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
