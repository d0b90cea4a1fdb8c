"""The padding of one call as the attention needs it: which rows to take out, and how many there are."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.attention import Segments
from tokenops.shapes import Bool, Float


class MaskUsed(TokenOpsError, AttributeError):
    """A model computes with its mask instead of handing it on; ``hasattr`` of a mask stays an answer."""

    def __init__(self, what: str) -> None:
        super().__init__("attention", "a model that only hands its mask on: use sdpa for this one", what)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.got,)


class Packing:
    """A mask by causality and padding, kept as what it hides instead of a map: real keys, causal or not.

    The host reads the lengths once, and every layer that gets this value uses them. With causality the
    queries are the newest keys, each sees the keys up to its own, and the output of a query at padding is 0.
    Without, all queries are taken, for they may belong to another sequence than the keys.

    Models may hand it on and cut it (which gives a tensor); another use of it as a tensor is refused.

    Args:
        keys: (b k) True for real keys.
        queries: q, how many look; with causality, the newest of the keys.
        causal: whether they see only what came before them.

    Raises:
        MaskUsed: a ``TokenOpsError``, where a model computes with it.

    >>> packing = Packing(torch.tensor([[False, True, True]]), queries=2)
    >>> packing.segments
    Segments(queries=(2,), keys=(2,))
    >>> packing.dense[0, 0].int()
    tensor([[0, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """

    def __init__(self, keys: Bool[Tensor, "b k"], queries: int, *, causal: bool = True) -> None:
        self.keys, self.queries, self.causal = keys, queries, causal
        self._indices: dict[torch.device, tuple[Tensor | None, Tensor | None]] = {}

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense[index]

    def __getattr__(self, name: str) -> NoReturn:
        raise MaskUsed(f"mask.{name}")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packing):
            return self is other
        raise MaskUsed(f"mask == {other!r}")

    __hash__ = object.__hash__

    def __invert__(self) -> NoReturn:
        raise MaskUsed("~mask")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> NoReturn:
        raise MaskUsed(f"{getattr(function, '__name__', function)} of its mask")

    @property
    def _looks(self) -> Bool[Tensor, "b q"]:
        b, k = self.keys.shape
        return self.keys[:, k - self.queries :] if self.causal else self.keys.new_ones(b, self.queries)

    @cached_property
    def segments(self) -> Segments:
        """Queries and keys of every sequence; here the host waits for the device, once."""
        return Segments.of(*torch.stack([self._looks.sum(1), self.keys.sum(1)]).tolist())

    @property
    def hides(self) -> bool:
        """Whether any key is padding."""
        return self.segments.total[1] < self.keys.numel()

    @cached_property
    def dense(self) -> Bool[Tensor, "b 1 q k"]:
        """The same mask written out. A query at padding sees itself, so that no softmax runs over nothing."""
        b, k = self.keys.shape
        seen = self.keys[:, None, None].expand(b, 1, self.queries, k)
        if not self.causal or self.queries == 1:
            return seen
        every, newest = torch.ones(self.queries, k, dtype=torch.bool, device=seen.device), k - self.queries
        own = every.tril(newest).triu(newest) & ~self._looks[:, None, :, None]
        return (seen & every.tril(newest)) | own

    def indices(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Flat places of the queries among (b q) and of the keys among (b k); None where all are taken."""
        if device not in self._indices:
            q, k = self.segments.total
            self._indices[device] = (_places(self._looks, q, device), _places(self.keys, k, device))
        return self._indices[device]

    def pack(
        self, query: Float[Tensor, "b h q d"], key: Float[Tensor, "b g k d"], value: Float[Tensor, "b g k e"]
    ) -> tuple[Float[Tensor, "t h d"], Float[Tensor, "s g d"], Float[Tensor, "s g e"]]:
        """What is no padding, sequence after sequence.

        Raises:
            TokenOpsError: queries or keys of other lengths than the mask was made for.
        """
        b, k = self.keys.shape
        if (query.shape[0], query.shape[2], key.shape[0], key.shape[2]) != (b, self.queries, b, k):
            expected = f"{b} sequences of {self.queries} queries and {k} keys, as the mask was made for"
            raise TokenOpsError("attention", expected, f"{tuple(query.shape)} and {tuple(key.shape)}")
        rows, columns = self.indices(query.device)
        return _take(query, rows), _take(key, columns), _take(value, columns)

    def pad(self, y: Float[Tensor, "t h e"]) -> Float[Tensor, "b q h e"]:
        """Back to the padded shape, 0 at padding."""
        b, rows = self.keys.shape[0], self.indices(y.device)[0]
        if rows is not None:
            y = y.new_zeros(b * self.queries, *y.shape[1:]).index_copy_(0, rows, y)
        return y.view(b, self.queries, *y.shape[1:])


def _places(mask: Tensor, total: int, device: torch.device) -> Tensor | None:
    """Flat places of the ``total`` True of a mask, None if it has nothing else; the host does not wait."""
    if total == mask.numel():
        return None
    return mask.flatten().nonzero_static(size=total).squeeze(1).to(device)


def _take(x: Tensor, places: Tensor | None) -> Tensor:
    """(b h n d) -> (t h d): the places among (b n), read in the order in which ``x`` lies in memory."""
    rows = x.transpose(1, 2)
    if places is None or rows.is_contiguous():
        rows = rows.flatten(0, 1)
        return rows if places is None else rows.index_select(0, places)
    _, h, n, d = x.shape
    heads = torch.arange(h, device=x.device) * n
    fine = (places // n * (h * n) + places % n)[:, None] + heads
    return x.reshape(-1, d).index_select(0, fine.flatten()).view(-1, h, d)
