"""What was measured, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenops.analysis.measure.statistics import Ratio, Spread

FORMAT, VERSION = "tokenops-measurement", 1
FULL = "full"
"""Name of the model without a pipeline."""


@dataclass(frozen=True)
class Limit:
    """What the cost model says; see :func:`tokenops.analysis.cost`.

    Attributes:
        speedup: the most that time to first token can shrink by, an estimate from the device's rates; None
            where the cost model cannot say.
        flops: the same if FLOPs alone took time.
        break_even: visual tokens of an image below which the pipeline cannot help, None likewise.
        device: whose roofline this is.
        reason: why something is missing.

    >>> Limit(speedup=3.1, break_even=120, device="h200").flops is None
    True
    """

    speedup: float | None = None
    flops: float | None = None
    break_even: int | None = None
    device: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One contender: the model with a pipeline, or without one (``name == "full"``).

    Attributes:
        name: given by the caller.
        pipeline: the code that builds it, None without one.
        ttft: seconds from inputs on the device to the first token, vision tower included.
        decode: tokens a second behind the first one, all rows of the batch together; None if not asked for.
        speedup: time of ``full`` / own time to first token, paired by round.
        decode_speedup: own decoding speed / that of ``full``, paired by round.
        overhead: seconds of ``ttft`` inside the pipeline's stages, from runs of their own.
        kv_bytes: keys and values the cache stores after the prompt.
        peak_bytes: most bytes held during the prompt, beside weights and inputs; None with ``peak_reason``.
        tokens_per_layer: visual tokens that ran in each layer, mean over the images.
        limit: None for ``full``.

    >>> twice, times = Ratio.paired([2.0] * 7, [1.0] * 7), Spread((1.0,) * 7)
    >>> row = Row("a", None, times, None, twice, None, times, 96, None, "not read", (36.0, 12.0), Limit(4.0))
    >>> row.tokens, row.of_limit, row.verdict
    (24.0, 0.5, 'faster')
    >>> row.as_dict()["limit"]["speedup"]
    4.0
    """

    name: str
    pipeline: str | None
    ttft: Spread
    decode: Spread | None
    speedup: Ratio
    decode_speedup: Ratio | None
    overhead: Spread
    kv_bytes: int
    peak_bytes: int | None
    peak_reason: str | None
    tokens_per_layer: tuple[float, ...]
    limit: Limit | None

    @property
    def tokens(self) -> float:
        """Visual tokens of an image that ran, mean over the layers."""
        return sum(self.tokens_per_layer) / len(self.tokens_per_layer)

    @property
    def of_limit(self) -> float | None:
        """Share of the possible speed-up that was reached."""
        if self.limit is None or self.limit.speedup is None:
            return None
        return self.speedup.median / self.limit.speedup

    @property
    def verdict(self) -> str:
        """That of ``speedup``, see :attr:`Ratio.verdict`."""
        return self.speedup.verdict

    def as_dict(self) -> dict[str, Any]:
        """JSON values; times in seconds."""
        record = {n: v.as_dict() if isinstance(v, Spread | Ratio) else v for n, v in vars(self).items()}
        record["tokens_per_layer"] = list(self.tokens_per_layer)
        record["limit"] = None if self.limit is None else vars(self.limit)
        return record | {"tokens": self.tokens, "of_limit": self.of_limit, "verdict": self.verdict}


@dataclass(frozen=True)
class Measurement:
    """One interleaved run of all contenders, ``full`` first.

    Attributes:
        rows: one for every contender.
        settings: model, inputs and how often what ran.
        environment: hardware and versions.

    >>> twice, times = Ratio.paired([2.0] * 7, [1.0] * 7), Spread((1.0,) * 7)
    >>> row = Row("a", None, times, None, twice, None, times, 96, None, "not read", (36.0, 12.0), Limit(4.0))
    >>> found = Measurement((row,), {"runs": 7}, {"device": "cpu"})
    >>> found["a"].verdict, found.as_dict()["format_version"], json.loads(found.json())["settings"]
    ('faster', 1, {'runs': 7})
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "rows": [row.as_dict() for row in self.rows],
        }

    def json(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def table(self) -> str:
        """Plain text: one line a contender, then what to make of it."""
        from tokenops.analysis.measure.table import render

        return render(self)
