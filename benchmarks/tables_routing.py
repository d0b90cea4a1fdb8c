"""Tables of layer routing: quality on the pocket VLM, and cost."""

from __future__ import annotations

from tables_kit import markdown, read

SHOWN = (
    "ALVTS",
    "ALVTS, not calibrated",
    "ALVTS, heads apart",
    "ALVTS, teacher scores",
    "ALVTS, ratios by score mass",
    "ALVTS, ratios by gain",
    "hybrid x2",
    "hybrid x2, ratios by gain",
    "hybrid DivPrune x2",
    "VisionSelector",
    "VisionZip",
    "DivPrune",
    "CLS attention",
    "uniform",
    "random",
)
FIRST = (
    "hybrid x2",
    "hybrid DivPrune x2",
    "ALVTS",
    "ALVTS, ratios by gain",
    "ALVTS, heads apart",
    "VisionSelector",
    "DivPrune",
    "VisionZip",
    "CLS attention",
    "uniform",
    "random",
)
LEFT_OUT = ("hybrid x1.5", "hybrid x3", "FastV's choice, skip")
SCHEDULES = ("FastV (exit)", "FastV's choice, skip", "ALVTS from layer 2, exit", "ALVTS from layer 2")


def retention() -> str:
    """The methods people ask about first, at equal mean tokens per layer."""
    return _accuracy(FIRST)


def routing() -> str:
    """Accuracy at equal mean tokens per layer."""
    return _accuracy(SHOWN)


def routing_fates() -> str:
    """Skip and exit on the same schedule, and ALVTS at the same mean."""
    return _accuracy((*SCHEDULES, "ALVTS at FastV's mean"))


def _accuracy(methods: tuple[str, ...]) -> str:
    result = read("pocket_routing")
    rows = {(row["method"], row["budget"]): row for row in result["rows"]}
    budgets = sorted({budget for _, budget in rows}, reverse=True)
    body = []
    for method in methods:
        found = [rows.get((method, k)) for k in budgets]
        same = all(row is None or abs(row["mean"] - row["budget"]) < 1 for row in found)
        cells = [
            "–" if row is None else f"{100 * row['accuracy']:.1f}" + ("" if same else f" ({row['mean']:.0f})")
            for row in found
        ]
        body.append([method, *cells])
    head = f"all 144 tokens: {100 * result['full']:.1f} %; {result['questions']} held-out questions\n\n"
    return head + markdown(["accuracy in % at tokens", *map(str, budgets)], body)


def routing_pairs() -> str:
    """Paired differences with intervals."""
    pairs: dict[tuple[str, str], dict[int, str]] = {}
    for row in read("pocket_routing")["pairs"]:
        if row["method"] in LEFT_OUT:
            continue
        low, high = row["interval"]
        text = f"{100 * row['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        pairs.setdefault((row["method"], row["against"]), {})[row["budget"]] = text
    budgets = sorted({k for cells in pairs.values() for k in cells}, reverse=True)
    body = [[f"{a} − {b}", *(cells.get(k, "–") for k in budgets)] for (a, b), cells in pairs.items()]
    return markdown(["points at tokens", *map(str, budgets)], body)


def routing_cost() -> str:
    """Prefill speed-up of the language model, counted and measured."""
    body = []
    for row in read("routing_cost")["rows"][1:]:
        name = row["name"].replace(f" {row['keep']}", "").replace("prune", "prune before").strip()
        body.append(
            [
                f"{100 * row['keep']:g} %, {name}",
                f"{row['speedup']:.2f}×",
                f"{row['counted']:.2f}×",
                f"{row['share']:.2f}",
                f"{100 * row['over_prune']:+.1f} %",
            ]
        )
    return markdown(["keep", "measured", "counted", "share", "time over pruning"], body)
