"""Tables of what hardware allows, of ragged attention, and of routing under compile and inside timm."""

from __future__ import annotations

from tables_kit import markdown, read
from tables_speed import times, where

KEEPS = (0.1, 0.2, 0.3)
METHODS = {
    ("prune", "float32"): "prune before",
    ("fastv", "float32"): "FastV",
    ("skip", "float32"): "skip, scores in float32",
    ("skip", "tower rate"): "skip, scores at the model's rate",
}


def limits() -> str:
    """Speed-up limit of every method on an H200."""
    found: dict[tuple[str, int, str], dict[float, str]] = {}
    for row in read("limits")["limits"]:
        how = METHODS.get((row["method"], row["scoring"]))
        if row["device"] == "h200" and how is not None:
            key = (row["model"], row["tokens"], how)
            found.setdefault(key, {})[row["keep"]] = f"{row['time']:.1f}×"
    body = [[f"{model}, {n:,}", how, *(cells[k] for k in KEEPS)] for (model, n, how), cells in found.items()]
    return markdown(["visual tokens", "method", *(f"{100 * k:g} %" for k in KEEPS)], body)


def limits_prune() -> str:
    """Limits of pruning, and the number of tokens below which it cannot help."""
    result = read("limits")
    ours = ("h200", "prune", "float32")
    rows = [r for r in result["limits"] if (r["device"], r["method"], r["scoring"]) == ours]
    found: dict[tuple[str, int], dict[float, str]] = {}
    for row in rows:
        found.setdefault((row["model"], row["tokens"]), {})[row["keep"]] = f"{row['time']:.1f}×"
    even = {
        row["model"]: row["tokens"]
        for row in result["break_even"]
        if (row["device"], row["launches"], row["method"], row["keep"]) == ("h200", "eager", "prune", 0.2)
    }
    body = [
        [f"{model}, {n:,} visual tokens", *(cells[k] for k in KEEPS), str(even.get(model, "–"))]
        for (model, n), cells in found.items()
    ]
    return markdown(["limit at keep", *(f"{100 * k:g} %" for k in KEEPS), "break-even at 20 %"], body)


def ragged_attention() -> str:
    """The loop over segments against the padded and the packed form."""
    result = read("ragged_attention")
    body = []
    for row in result["rows"]:
        if row["form"] != "segments":
            what = f"up to {row['longest']:,} tokens, {row['kv_heads']} key heads"
            what += ", causal" if row["causal"] else ""
            passes = "forward + backward" if row["backward"] else "forward"
            body.append([what, passes, row["form"], times(row["ratio"]), f"{row['pairs']:.2f}×"])
    head = ["", "", "form", "time over segments", "pairs of tokens"]
    return where(result["settings"]) + markdown(head, body)


def timm_routing() -> str:
    """A routed vision transformer: measured and counted."""
    result = read("timm_routing")
    body = [
        [row["method"], f"{100 * row['keep']:g} %", times(row["speedup"]), f"{row['counted']:.2f}×"]
        for row in result["rows"]
    ]
    return where(result["settings"]) + markdown(["method", "keep", "measured", "counted"], body)


def compiled_routing() -> str:
    """Prefill routed and not, eager and compiled."""
    result = read("compiled_routing")
    pairs = (
        "unrouted compiled / unrouted eager",
        "routed compiled / routed eager",
        "routed eager / unrouted eager",
        "routed compiled / unrouted compiled",
    )
    body = [
        [f"{row['n']:,} tokens, width {row['width']:,}", *(f"{row['ratios'][pair]:.2f}×" for pair in pairs)]
        for row in result["rows"]
    ]
    share = f"ALVTS of rank {result['settings']['rank']} at {result['settings']['keep']:.0%}, "
    return share + where(result["machine"]) + markdown(["times faster", *pairs], body)


TABLES = (compiled_routing, limits, limits_prune, ragged_attention, timm_routing)
