"""Tables of speed: what attaching costs, the scorer, growth, prefill on a GPU, and all bars together."""

from __future__ import annotations

from typing import Any

from tables_kit import markdown, read

SCORER_COSTS = ("scorer_cost", "scorer_cost_xeon")
"""The same benchmark on two machines."""


def where(settings: dict[str, Any]) -> str:
    """What the numbers were measured on, in a line before a table."""
    return f"{settings['machine']} ({settings['processor']}), one thread, torch {settings['torch']}\n\n"


def percent(values: list[float]) -> str:
    """Median, and quartiles in brackets."""
    low, middle, high = (f"{100 * value:+.2f}" for value in values)
    return f"{middle} % [{low}, {high}]"


def times(values: list[float], digits: int = 2) -> str:
    """Median, and quartiles in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle}× [{low}, {high}]"


def verdict(met: bool) -> str:
    """In a word."""
    return "met" if met else "**missed**"


def speed_bars() -> str:
    """Asked for and measured: every bar on a CPU."""
    body = []
    for row in read("overhead")["rows"]:
        if "bar" in row:
            what = f"attached, nothing dropped: {row['name']}"
            body.append([what, f"≤ {100 * row['bar']:.0f} %", percent(row["over"]), verdict(row["met"])])
    shares = {r["keep"]: r["share"] for r in read("routing_cost")["rows"] if r["name"].startswith("prune")}
    for keep, share in shares.items():
        what = f"prune before the language model at {100 * keep:g} %: share of the counted speed-up"
        body.append([what, "≥ 0.90", f"{share:.2f}", verdict(share >= 0.9)])
    for row in read("decode")["rows"]:
        if row["keep"] == 1.0:
            ratio = row["speed_ratio"]
            what = f"decoding, attached at keep = 1.0, batch {row['batch']}"
            body.append([what, "≥ 0.95×", f"{ratio:.2f}×", verdict(ratio >= 0.95)])
    for result in map(read, SCORER_COSTS):
        for row in result["rows"]:
            if "bar" in row:
                what = f"scorer against its N×N form, N = {row['n']:,}, {row['what']}"
                what += f" ({result['settings']['processor']})"
                body.append([what, f"≥ {row['bar']:g}×", times(row["ratio"], 0), verdict(row["met"])])
    for bar in read("ragged_attention")["bars"]:
        span = f"{bar['least']:.2f}× – {bar['most']:.2f}×"
        what = f"ragged attention, 200 to 1,500 tokens: {bar['what']}"
        body.append([what, f"≥ {bar['wanted']:g}×", span, verdict(bar["least"] >= bar["wanted"])])
    return markdown(["bar", "asked for", "measured", ""], body)


def overhead() -> str:
    """Prefill of a model with a pipeline that drops nothing, over the model alone."""
    result = read("overhead")
    body = [
        [row["name"], f"{row['seconds'][1]:.3f} s", percent(row["over"]), f"{row['logits_apart']:.1g}"]
        for row in result["rows"]
    ]
    return where(result["settings"]) + markdown(["", "prefill", "over unattached", "logits apart"], body)


def scorer_cost() -> str:
    """The closed form of the scorer against the N×N form on two machines: time and memory."""
    header = ["", "N×N", "closed", "closed reads", "over reading", "ratio", "N×N holds", "closed holds"]
    parts = []
    for result in map(read, SCORER_COSTS):
        s = result["settings"]
        body = [
            [
                f"N = {row['n']:,}, {row['what']}",
                f"{1e3 * row['plain'][1]:,.0f} ms",
                f"{1e3 * row['closed'][1]:,.1f} ms",
                f"{_read_once(row['n'], s) / row['closed'][1]:.0f} GB/s" if row["what"] == "forward" else "–",
                times(row["over_read"]) if "over_read" in row else "–",
                times(row["ratio"], 0),
                f"{row['plain_MB']:,.0f} MB",
                f"{row['closed_MB']:,.2f} MB",
            ]
            for row in result["rows"]
        ]
        parts.append(f"width {s['width']:,}, float32; {where(s)}" + markdown(header, body))
    return "\n".join(parts)


def _read_once(n: int, settings: dict[str, Any]) -> float:
    """Gigabytes of both weights, and of the features twice: the mean is known only after all of them."""
    return 4e-9 * 2 * settings["width"] * (settings["hidden"] + n)


def scorer_agreement() -> str:
    """How far both forms are from float64, and how many tokens their choices differ in."""
    body = []
    for row in read("scorer_cost")["agreement"]:
        errors = [
            f"{row[f'{form}_{of}_error']:.1g}" for of in ("score", "gradient") for form in ("plain", "closed")
        ]
        apart = sum(found["closed_plain"] for found in row["topk_apart"].values())
        body.append([f"N = {row['n']:,}", *errors, str(apart)])
    header = [
        "relative error",
        "scores, N×N",
        "closed",
        "gradients, N×N",
        "closed",
        "tokens chosen otherwise",
    ]
    return markdown(header, body)


def growth() -> str:
    """Fitted exponents of time and memory, and the largest measured case."""
    result = read("growth")
    largest = max(row["n"] for row in result["selection"])
    at = {row["method"]: row for row in result["selection"] if row["n"] == largest}
    body = []
    for e in result["exponents"]:
        if e["over"] != "tokens":
            continue
        row = at[e["what"]]
        law = f"N{'²' if e['time_law'] == 2 else ''}"
        body.append([e["what"], law, f"{e['time']:.2f}", f"{e['memory']:.2f}"])
        body[-1] += [f"{row['ms'][1]:,.1f} ms", f"{row['MB']:,.1f} MB"]
    header = ["", "time is", "exponent of time", "of memory", f"N = {largest:,}", ""]
    return where(result["settings"]) + markdown(header, body)


def growth_routing() -> str:
    """Fitted exponents of prefill and routing time over layers and batch."""
    found: dict[str, dict[str, float]] = {}
    for e in read("growth")["exponents"]:
        if e["over"] != "tokens":
            found.setdefault(e["what"], {})[e["over"]] = e["time"]
    body = [[what, *(f"{value:.2f}" for value in by.values())] for what, by in found.items()]
    return markdown(["exponent of time over", "layers", "batch"], body)


def gpu_prefill(result: dict[str, Any] | None = None) -> str:
    """Prefill on a GPU: speed-up, its limit, the share of it, memory."""
    result = read("gpu_prefill") if result is None else result
    body = []
    for r in result["prefill"]:
        name = f"{r['model']}, {r['mode']}, {r.get('name', '–')}"
        if "failed" in r:
            body.append([name, *["–"] * 5, r["failed"]])
            continue
        gains = ["", "", ""]
        if "limit" in r:
            gains = [times(r["speedup"]), f"{r['limit']:.2f}×", f"{r['share']:.2f}"]
        memory = [f"{r[k]:.2f}" if r.get(k) else "–" for k in ("peak_ratio", "kv_ratio")]
        body.append([name, f"{r['ms'][1]:.1f} ms", *gains, *memory])
    s = result["settings"]
    head = f"{s['device']}, {s['dtype']}, torch {s['torch']}, transformers {s['transformers']}\n\n"
    return head + markdown(["", "prefill", "speed-up", "limit", "share", "peak", "KV"], body)


def gpu_attention(result: dict[str, Any] | None = None) -> str:
    """Attention backends on ragged batches."""
    result = read("gpu_prefill") if result is None else result
    body = []
    for r in result["attention"]:
        name = f"{r['batch']} sequences, {r['tokens']:,} tokens: {r['backend']}"
        cells = [f"{r['ms'][1]:.3f} ms", times(r["speedup"])] if "ms" in r else ["–", r["failed"]]
        body.append([name, *cells])
    return markdown([f"{result['settings']['device']}", "time", "padded SDPA over it"], body)


TABLES = (
    speed_bars,
    overhead,
    scorer_cost,
    scorer_agreement,
    growth,
    growth_routing,
    gpu_prefill,
    gpu_attention,
)
