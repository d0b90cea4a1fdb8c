"""A measurement as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenops.analysis.measure.result import FULL, Limit, Measurement, Row
from tokenops.analysis.measure.statistics import TOO_FEW, Ratio

_HEAD = ("", "tokens", "TTFT ms", "(quartiles)", "speed-up", "(interval)", "limit", "reached", "stages ms")
_HEAD_REST = ("decode tok/s", "(ratio)", "peak MiB", "KV MiB")


def render(measured: Measurement) -> str:
    """The table, the verdicts, and what they rest on."""
    s, e = measured.settings, measured.environment
    threads = f"{e['threads']} thread{'' if e['threads'] == 1 else 's'}"
    title = (
        f"{s['model']}, {s['dtype']}, {s['layers']} layers, batch {s['batch']}: "
        f"{s['visual_tokens']:g} visual + {s['text_tokens']:g} text tokens\n"
        f"{e['machine']} ({e['processor']}), {threads}, torch {e['torch']}; "
        f"{s['timer']} time, {s['runs']} interleaved runs"
    )
    lines = [_HEAD + _HEAD_REST, *(_cells(row) for row in measured.rows)]
    verdicts = [verdict(row) for row in measured.rows if row.name != FULL]
    return "\n".join([title, "", *_aligned(lines), "", *verdicts, ""])


def verdict(row: Row) -> str:
    """What a contender's numbers mean, in a sentence or two."""
    r = row.speedup
    interval = f"{r.median:.2f}x [{r.low:.2f}, {r.high:.2f}] at {r.confidence:.0%}"
    said = {
        "faster": f"{row.name}: faster here, time to first token {interval}.",
        "slower": f"{row.name}: does not help here, it is slower: {interval}.",
        "no difference": f"{row.name}: does not help here, no difference to be seen: {interval}.",
        TOO_FEW: f"{row.name}: too few runs to tell: {interval}.",
    }[row.verdict]
    return said + _of_decoding(row.decode_speedup) + _of_limit(row.limit)


def _of_decoding(ratio: Ratio | None) -> str:
    """Said where there is a difference."""
    if ratio is None or ratio.verdict not in ("faster", "slower"):
        return ""
    return f" Decoding is {ratio.verdict}: {ratio.median:.2f}x."


def _of_limit(limit: Limit | None) -> str:
    if limit is None:
        return ""
    said = ""
    if limit.speedup is not None:
        said += f" Estimated limit on {limit.device}: {limit.speedup:.2f}x."
    if limit.break_even is not None:
        said += f" By that estimate it cannot help below {limit.break_even} visual tokens."
    return said + (f" {limit.reason[0].upper()}{limit.reason[1:]}." if limit.reason else "")


def _cells(row: Row) -> tuple[str, ...]:
    full = row.name == FULL
    low, high = row.ttft.quartiles
    limit = None if row.limit is None else row.limit.speedup
    return (
        row.name,
        f"{row.tokens:.4g}",
        _ms(row.ttft.median),
        f"({_ms(low)}-{_ms(high)})",
        f"{row.speedup.median:.2f}",
        "" if full else _interval(row.speedup),
        "" if limit is None else f"{limit:.2f}",
        "" if row.of_limit is None else f"{row.of_limit:.0%}",
        "" if full else _ms(row.overhead.median),
        "" if row.decode is None else f"{row.decode.median:.4g}",
        "" if row.decode_speedup is None or full else f"({row.decode_speedup.median:.2f})",
        "?" if row.peak_bytes is None else _mib(row.peak_bytes),
        _mib(row.kv_bytes),
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.4g}"


def _interval(ratio: Ratio) -> str:
    return f"({ratio.low:.2f}-{ratio.high:.2f})"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as needed, names to the left and numbers to the right; empty columns left out."""
    columns = [c for c in zip(*lines, strict=True) if any(c[1:])]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
