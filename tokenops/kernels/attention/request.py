"""What a backend is asked for, as facts that need no tensor; and what a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.kernels.attention.segments import Segments

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# kernels round the scale to float32, and at 0 or below the -inf of a hidden key is no longer hidden
LEAST, MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Request:
    """Device, dtype and sizes of one call: ``h`` query heads, ``g`` key heads, widths ``d`` and ``e``.

    Every query of its segments sees a key, and every key is seen: the others never reach a backend.
    """

    device: torch.device
    dtype: torch.dtype
    h: int
    g: int
    d: int
    e: int
    segments: Segments
    causal: bool = False
    scale: float | None = None

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float | None
    ) -> Request:
        """Read off tensors, which are checked; ``segments`` are theirs, with blind queries.

        Raises:
            TokenOpsError: other types; shapes, dtypes or devices that do not fit together or to the
                segments; a scale that is not positive in float32.
        """

        def need(fits: bool, expected: str, got: object) -> None:
            if not fits:
                raise TokenOpsError("attention", expected, got)

        kinds = ", ".join(type(x).__name__ for x in (q, k, v))
        need(all(isinstance(x, Tensor) for x in (q, k, v)), "q, k and v as tensors", kinds)
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        need(q.ndim == k.ndim == v.ndim == 3, "q (t h d), k (s g d) and v (s g e)", shapes)
        fit = q.shape[2] == k.shape[2] > 0 and k.shape[:2] == v.shape[:2]
        need(fit, "q (t h d), k (s g d) and v (s g e) with d > 0", shapes)
        g, h = k.shape[1], q.shape[1]
        need(g > 0 and h > 0 and h % g == 0, "query heads that are a multiple of the key heads", shapes)
        need(isinstance(segments, Segments), "segments as Segments", type(segments).__name__)
        totals = f"segments of {segments.total[0]} queries and {segments.total[1]} keys"
        need((len(q), len(k)) == segments.total, totals, f"{len(q)} and {len(k)} rows")
        need(q.dtype in DTYPES, "a dtype of " + ", ".join(map(str, DTYPES)), q.dtype)
        need(q.dtype == k.dtype == v.dtype, "one dtype", f"{q.dtype}, {k.dtype}, {v.dtype}")
        need(q.device == k.device == v.device, "one device", f"{q.device}, {k.device}, {v.device}")
        need(isinstance(causal, bool), "causal: a bool", repr(causal))
        if scale is not None:
            number = isinstance(scale, int | float) and not isinstance(scale, bool)
            positive = f"scale: None or a positive number that float32 holds, {LEAST:.2g} to {MOST:.2g}"
            need(number and LEAST <= scale <= MOST, positive, repr(scale))
        seen = segments.seen(causal)
        return cls(q.device, q.dtype, h, g, q.shape[2], v.shape[2], seen, causal, scale)


Run = Callable[[Tensor, Tensor, Tensor, Segments, bool, float | None], Tensor]


@dataclass(frozen=True)
class Backend:
    """A way to compute attention: ``why_not`` names what keeps it from serving a request, None if nothing.

    ``run(q, k, v, segments, causal, scale)`` gets the segments of the request, at least one.
    """

    name: str
    why_not: Callable[[Request], str | None]
    run: Run
