"""Tables of what hardware allows, of ragged attention, and of routing under compile and inside timm."""

from __future__ import annotations

from tables_kit import markdown, read
from tables_speed import times, where

KEEPS = (0.1, 0.2, 0.3)
METHODS = {
    ("prune", "float32"): "prune before",
    ("fastv", "float32"): "FastV",
    ("skip", "float32"): "skip",
    ("skip", "tower rate"): "skip, its map at the model's rate too",
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


def limits_short() -> str:
    """Limits of pruning and of routing, for README."""
    rows = [r for r in read("limits")["limits"] if r["device"] == "h200" and r["scoring"] == "float32"]
    found = {(r["model"], r["tokens"], r["method"], r["keep"]): f"{r['time']:.1f}×" for r in rows}
    models = list(dict.fromkeys((r["model"], r["tokens"]) for r in rows))
    named = {"prune": "prune", "skip": "ALVTS"}
    body = [
        [f"{model}, {n:,}", *(found[model, n, method, keep] for method in named for keep in KEEPS)]
        for model, n in models
    ]
    head = [f"{name}, {100 * keep:g} %" for name in named.values() for keep in KEEPS]
    return markdown(["visual tokens", *head], body)


def break_even() -> str:
    """Visual tokens below which a method cannot help on an H200."""
    rows = [r for r in read("limits")["break_even"] if (r["device"], r["keep"]) == ("h200", 0.2)]
    found = {(r["model"], r["method"], r["launches"]): r["tokens"] for r in rows}
    models = list(dict.fromkeys(r["model"] for r in rows))
    named = {"prune": "prune", "fastv": "FastV", "skip": "ALVTS, rank 256"}
    body = []
    for method, name in named.items():
        for launches, how in (("eager", "eager"), ("compiled", "launches for nothing")):
            cells = [found[model, method, launches] for model in models]
            body.append([f"{name}, {how}", *("never" if n is None else f"{n:,}" for n in cells)])
    return markdown(["break-even at keep 20 %", *models], body)


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


def ragged_forms() -> str:
    """The forms side by side, as many heads of keys as of queries."""
    result = read("ragged_attention")
    forms = ("segments incl. packing", "padded", "packed mask", "padded right, is_causal")
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if row["kv_heads"] == result["settings"]["heads"]:
            what = f"up to {row['longest']:,} tokens{', causal' * row['causal']}"
            what += ", forward" + " + backward" * row["backward"]
            cell = f"{row['ratio'][1]:.2f}× ({row['pairs']:.2f}×)"
            found.setdefault(what, {})[row["form"]] = cell
    body = [[what, *(cells.get(form, "–") for form in forms)] for what, cells in found.items()]
    return where(result["settings"]) + markdown(["time (pairs) over segments", *forms], body)


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


TABLES = (compiled_routing, limits, limits_short, break_even, ragged_attention, ragged_forms, timm_routing)
