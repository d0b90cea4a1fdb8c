"""Work: operations with their FLOPs and the bytes they move; one multiply-add is two FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenops.analysis.cost.devices import Device

Segments = Sequence[tuple[int, int]]
"""(length, how many) of sequences that attend to themselves only."""


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        flops: counted as torch's ``FlopCounterMode`` does.
        bytes: read and written.
        wide: runs in float32 whatever the model runs in.

    >>> Op(flops=2 * 3 * 4 * 5, bytes=4 * (3 * 4 + 4 * 5 + 3 * 5))
    Op(flops=120, bytes=188, wide=False)
    """

    flops: int = 0
    bytes: int = 0
    wide: bool = False


@dataclass(frozen=True)
class Part:
    """What a part of the model costs: FLOPs, bytes moved, roofline seconds.

    >>> Part(2, 3, 0.5) + Part(1, 1, 0.25)
    Part(flops=3, bytes=4, seconds=0.75)
    """

    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)

    @classmethod
    def of(cls, ops: Iterable[Op], device: Device, dtype: str) -> Part:
        """The sum of operations that run one after the other, each at its own roofline.

        >>> from tokenops.analysis import Device
        >>> slow = Device("slow", {"float32": 10.0}, bandwidth=100.0)
        >>> Part.of([Op(flops=20, bytes=100), Op(flops=5, bytes=300)], slow, "float32")
        Part(flops=25, bytes=400, seconds=5.0)
        """
        flops = moved = 0
        seconds = 0.0
        for op in ops:
            flops, moved = flops + op.flops, moved + op.bytes
            where = "float32" if op.wide else dtype
            seconds += device.seconds(flops=op.flops, bytes=op.bytes, dtype=where)
        return cls(flops, moved, seconds)


def matmul(rows: int, inner: int, columns: int, size: int, *, bias: bool = False, wide: bool = False) -> Op:
    r"""``(rows inner) @ (inner columns)`` with weights: 2·rows·inner·columns FLOPs, everything moved once.

    ``size`` is bytes per number. A bias is read but, as torch's counter has it, adds no FLOPs.

    >>> matmul(3, 4, 5, 2)
    Op(flops=120, bytes=94, wide=False)
    """
    moved = rows * inner + inner * columns + rows * columns + columns * bias
    return Op(2 * rows * inner * columns, moved * size if rows else 0, wide)


def attention(heads: int, kv_heads: int, head_dim: int, segments: Segments, size: int, *, pairs: str) -> Op:
    r"""Fused attention: 4·h·e FLOPs for every pair of a query and a key; the map never reaches memory.

    ``pairs="full"`` counts all l² pairs of a segment, ``"causal"`` the l·(l+1)/2 that a causal mask leaves.

    >>> attention(2, 1, 4, [(3, 1)], 2, pairs="causal")
    Op(flops=192, bytes=144, wide=False)
    """
    tokens = sum(length * times for length, times in segments)
    counted = sum((n * n if pairs == "full" else n * (n + 1) // 2) * times for n, times in segments)
    moved = tokens * head_dim * 2 * (heads + kv_heads)
    return Op(4 * heads * head_dim * counted, moved * size)


def move(numbers: int, size: int) -> Op:
    """Rows gathered or put back: read once, written once.

    >>> move(10, 2)
    Op(flops=0, bytes=40, wide=False)
    """
    return Op(0, 2 * numbers * size)
