"""The result of the cost model: parts, totals, limits, as a value, a table and a dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import groupby
from operator import add
from typing import Any

from tokenops.analysis.cost.work import Part

LANGUAGE = ("selection", "layers", "head")
"""The parts that are left without the vision tower and its projector."""


@dataclass(frozen=True)
class Speedup:
    """How many times less a pipeline costs than the model without it.

    Attributes:
        time: roofline seconds of all parts: an estimated limit, as good as the rates of the device are.
        flops: FLOPs of all parts.
        time_language, flops_language: the same without vision tower and projector.

    >>> Speedup(time=1.5, flops=2.0, time_language=1.8, flops_language=2.1).flops
    2.0
    """

    time: float
    flops: float
    time_language: float
    flops_language: float


@dataclass(frozen=True)
class Cost:
    """What one prefill costs, see :func:`~tokenops.analysis.cost.cost`.

    Attributes:
        family, device, dtype, batch, text: what was asked.
        tokens: visual tokens of each image that reach the language model.
        parts: name -> FLOPs, bytes and roofline seconds.
        visual_per_layer: visual tokens that run in each layer.
        tokens_per_layer: all tokens that run in it.
        kv_bytes: keys and values of all layers and rows after the prefill.
        launches: kernels that the pipeline adds, about.
        launch_seconds: what they take at least; in no other number.
        not_counted: components without a formula, taken to cost nothing.
        pairs: ``"full"`` or ``"causal"`` attention.
        whole: the same without the pipeline, None if there is none.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    >>> from tokenops import recipes
    >>> from tokenops.analysis import cost
    >>> vision = CLIPVisionConfig(image_size=336, patch_size=14)
    >>> config = LlavaConfig(vision_config=vision, text_config=LlamaConfig())
    >>> made = cost(config, 576, recipes.uniform(0.5), text=32)
    >>> made.tokens, made.visual_per_layer[0], made.kv_bytes // 2**20
    ((576,), 288, 160)
    >>> (made.flops, made.bytes, made.seconds) == (made.total.flops, made.total.bytes, made.total.seconds)
    True
    >>> round(made.language.flops / made.flops, 2), round(made.speedup_limit.flops, 2)
    (0.97, 1.88)
    >>> made.as_dict()["speedup_limit"]["flops"] == made.speedup_limit.flops
    True
    >>> print(made.table().splitlines()[0])
    llava, 576 visual and 32 text tokens, batch 1, bfloat16 on h200
    """

    family: str
    device: str
    dtype: str
    batch: int
    text: int
    tokens: tuple[int, ...]
    parts: Mapping[str, Part]
    visual_per_layer: tuple[int, ...]
    tokens_per_layer: tuple[int, ...]
    kv_bytes: int
    launches: int = 0
    launch_seconds: float = 0.0
    not_counted: tuple[str, ...] = ()
    pairs: str = "causal"
    whole: Cost | None = None

    @property
    def total(self) -> Part:
        """All parts."""
        return reduce(add, self.parts.values())

    @property
    def language(self) -> Part:
        """All parts but vision tower and projector."""
        return reduce(add, (self.parts[name] for name in LANGUAGE))

    @property
    def flops(self) -> int:
        """FLOPs of all parts."""
        return self.total.flops

    @property
    def bytes(self) -> int:
        """Bytes moved by all parts."""
        return self.total.bytes

    @property
    def seconds(self) -> float:
        """Roofline seconds of all parts, launches left out."""
        return self.total.seconds

    @property
    def speedup_limit(self) -> Speedup:
        """How many times less this is than the same call without the pipeline; 1 without one."""
        whole = self if self.whole is None else self.whole
        a, b, c, d = whole.total, self.total, whole.language, self.language
        return Speedup(a.seconds / b.seconds, a.flops / b.flops, c.seconds / d.seconds, c.flops / d.flops)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it, limits included."""
        made = {name: value for name, value in vars(self).items() if name not in ("parts", "whole")}
        made = {name: list(v) if isinstance(v, tuple) else v for name, v in made.items()}
        made["parts"] = {name: asdict(part) for name, part in self.parts.items()}
        made["total"] = asdict(self.total)
        made["speedup_limit"] = asdict(self.speedup_limit)
        return made

    def table(self) -> str:
        """A table in plain text: parts by FLOPs, bytes and time, and what the pipeline gains at best."""
        total = self.total
        rows = [("part", "GFLOP", "share", "MB", "ms", "share")]
        for name, part in (*self.parts.items(), ("total", total)):
            rows.append(
                (
                    name,
                    f"{part.flops / 1e9:,.2f}",
                    f"{_share(part.flops, total.flops):.1%}",
                    f"{part.bytes / 1e6:,.1f}",
                    f"{part.seconds * 1e3:,.3f}",
                    f"{_share(part.seconds, total.seconds):.1%}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for first, *numbers in rows:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        return "\n".join([self._title(), *lines, *self._notes()])

    __str__ = table

    def _title(self) -> str:
        images = " + ".join(map(str, self.tokens)) or "no"
        prompt = f"{images} visual and {self.text} text tokens"
        return f"{self.family}, {prompt}, batch {self.batch}, {self.dtype} on {self.device}"

    def _notes(self) -> list[str]:
        runs = [(n, len(list(same))) for n, same in groupby(self.visual_per_layer)]
        layers = ", ".join(f"{n} x {times}" for n, times in runs)
        notes = [
            f"visual tokens x layers: {layers}; KV cache {self.kv_bytes / 1e6:,.1f} MB; "
            f"{self.pairs} attention counted"
        ]
        if self.whole is not None:
            limit = self.speedup_limit
            notes.append(
                f"at best {limit.time:.2f} times as fast ({limit.flops:.2f} in FLOPs), without the tower "
                f"{limit.time_language:.2f} ({limit.flops_language:.2f}); {self.launches} kernels more, "
                f"{self.launch_seconds * 1e3:.2f} ms if nothing hides them"
            )
        if self.not_counted:
            notes.append(f"not counted: {', '.join(self.not_counted)}")
        return notes


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0
