"""Which queries see which keys in a packed ragged batch: lengths, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.shapes import Bool, Int


@dataclass(frozen=True)
class Segments:
    r"""Query and key lengths of every segment of a pack; segments lie one after the other, without gaps.

    .. math:: c_0 = 0, \qquad c_{i+1} = c_i + n_i \quad (\text{cumulative})

    Lengths are host ints, so nothing on the device has to be waited for; two equal values are the same pack.

    Args:
        queries: tokens that look, one count per segment.
        keys: tokens that are looked at, one count per segment; 0 is allowed in both.

    Raises:
        TokenOpsError: lengths that are no ints of at least 0, or other counts of segments.

    >>> segments = Segments.of([3, 0, 2])
    >>> segments.total, segments.longest
    ((5, 5), (3, 3))
    >>> segments.cumulative(torch.device("cpu"))[0]
    tensor([0, 3, 3, 5], dtype=torch.int32)
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    _cumulative: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name, lengths in (("queries", self.queries), ("keys", self.keys)):
            if not isinstance(lengths, tuple) or not all(type(n) is int and n >= 0 for n in lengths):
                raise TokenOpsError("Segments", f"{name}: a tuple of ints >= 0", repr(lengths))
        if len(self.queries) != len(self.keys):
            raise TokenOpsError(
                "Segments", f"key lengths of {len(self.queries)} segments", f"{len(self.keys)} lengths"
            )

    @classmethod
    def of(
        cls, lengths: Sequence[int] | Int[Tensor, "b"], keys: Sequence[int] | Int[Tensor, "b"] | None = None
    ) -> Segments:
        """From any sequence or tensor of lengths; without ``keys`` every segment looks at itself.

        Raises:
            TokenOpsError: lengths that are no sequence or tensor of ints of at least 0.

        >>> Segments.of(torch.tensor([1, 2]), keys=[4, 5])
        Segments(queries=(1, 2), keys=(4, 5))
        """
        queries = _host(lengths)
        return cls(queries, queries if keys is None else _host(keys))

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "b n"], keys: Bool[Tensor, "b m"] | None = None) -> Segments:
        """Lengths of the rows of a padding mask, True for real tokens anywhere; ``x[mask]`` is the pack.

        Raises:
            TokenOpsError: a mask that is no bool (b n); rows of queries and keys that are not as many.

        >>> Segments.from_mask(torch.tensor([[False, True, True], [False, False, True]]))
        Segments(queries=(2, 1), keys=(2, 1))
        """
        for m in (mask,) if keys is None else (mask, keys):
            if not isinstance(m, Tensor) or m.ndim != 2 or m.dtype != torch.bool:
                got = f"{m.dtype} {tuple(m.shape)}" if isinstance(m, Tensor) else type(m).__name__
                raise TokenOpsError("Segments.from_mask", "a bool mask (b n)", got)
        return cls.of(mask.sum(1), None if keys is None else keys.sum(1))

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def total(self) -> tuple[int, int]:
        """Queries and keys of the whole pack."""
        return sum(self.queries), sum(self.keys)

    @property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys of one segment, 0 without segments."""
        return max(self.queries, default=0), max(self.keys, default=0)

    @property
    def spans(self) -> list[tuple[slice, slice]]:
        """Rows of the queries and rows of the keys of every segment.

        >>> Segments.of([3, 2]).spans
        [(slice(0, 3, None), slice(0, 3, None)), (slice(3, 5, None), slice(3, 5, None))]
        """
        return list(zip(_spans(self.queries), _spans(self.keys), strict=True))

    def seen(self, causal: bool) -> Segments:
        """Without queries that see no key, keys nobody sees and empty segments; itself if there are none.

        >>> Segments.of([5, 2, 1], keys=[3, 0, 4]).seen(causal=True)
        Segments(queries=(3, 1), keys=(3, 4))
        """
        pairs = [(_looking(q, k, causal), k) for q, k in zip(self.queries, self.keys, strict=True)]
        if all(0 < m == q for (m, _), q in zip(pairs, self.queries, strict=True)):
            return self
        pairs = [pair for pair in pairs if pair[0]]
        return Segments(tuple(q for q, _ in pairs), tuple(k for _, k in pairs))

    def seen_rows(self, causal: bool) -> tuple[Int[Tensor, "t"], Int[Tensor, "s"]]:
        """Where the queries and keys of :meth:`seen` lie in the pack.

        >>> Segments.of([1, 2], keys=[1, 0]).seen_rows(causal=True)
        (tensor([0]), tensor([0]))
        """
        rows, columns = [torch.arange(0)], [torch.arange(0)]
        for (r, c), q, k in zip(self.spans, self.queries, self.keys, strict=True):
            if m := _looking(q, k, causal):
                rows.append(torch.arange(r.stop - m, r.stop))
                columns.append(torch.arange(c.start, c.stop))
        return torch.cat(rows), torch.cat(columns)

    def cumulative(self, device: torch.device) -> tuple[Int[Tensor, "b+1"], Int[Tensor, "b+1"]]:
        """Where segments begin and end, as int32 on ``device``; made once per device.

        Equal lengths of queries and keys give the same tensor twice: cuDNN takes that as the sign of it.
        """
        known = self._cumulative.get(device)
        if known is None:
            # a tensor made in inference mode could not be used in a later training step
            with torch.inference_mode(False):
                starts = _starts(self.queries, device)
                known = starts, starts if self.keys == self.queries else _starts(self.keys, device)
            if not torch.compiler.is_compiling():
                self._cumulative[device] = known
        return known


def _host(lengths: Sequence[int] | Tensor) -> tuple[int, ...]:
    found = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    if not isinstance(found, Sequence):
        raise TokenOpsError("Segments.of", "a sequence or 1-d tensor of lengths", repr(lengths))
    return tuple(found)


def _looking(q: int, k: int, causal: bool) -> int:
    """How many of the last queries see a key."""
    return min(q, k) if causal else q if k else 0


def _spans(lengths: tuple[int, ...]) -> list[slice]:
    ends = list(accumulate(lengths))
    return [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]


def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
