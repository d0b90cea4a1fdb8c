"""Draw ``docs/pictures/growth.png`` from the committed result of ``growth.py``.

python benchmarks/draw_growth.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image
from tables_kit import ROOT, read

INK, FAINT = "#1b1b20", "#6b6b76"
# Okabe and Ito's colours, which most colour-blind people tell apart; markers differ too
STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#D55E00", "D"),
    ("#CC79A7", "v"),
)


def panel(axis: Any, title: str, across: str, up: str, ticks: Sequence[int]) -> None:
    """Log-log, labelled."""
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10.5, color=INK, loc="left")
    axis.set_xlabel(across, fontsize=9, color=INK)
    axis.set_ylabel(up, fontsize=9, color=INK)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8, colors=FAINT)
    axis.grid(True, which="major", color="#e6e6ec", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def slopes(axis: Any, sizes: Sequence[int], powers: Sequence[int]) -> None:
    """Dotted lines to compare with, from below the cheapest: cost proportional to a power of the size."""
    start = 0.6 * min(line.get_ydata()[0] for line in axis.get_lines())
    for power in powers:
        ends = [start, start * (sizes[-1] / sizes[0]) ** power]
        axis.plot([sizes[0], sizes[-1]], ends, color=FAINT, lw=0.9, ls=":")
        label = "∝ N" if power == 1 else "∝ N²"
        axis.annotate(
            label, (sizes[-1], ends[1]), (3, 0), textcoords="offset points", fontsize=8, color=FAINT
        )


def selection(axes: Any, result: dict[str, Any]) -> None:
    """Time and memory of the methods over N."""
    sizes = sorted({row["n"] for row in result["selection"]})
    fitted = {e["what"]: e for e in result["exponents"] if e["over"] == "tokens"}
    for (method, e), (colour, marker) in zip(fitted.items(), STYLES, strict=True):
        rows = [row for row in result["selection"] if row["method"] == method]
        line = {"color": colour, "marker": marker, "ms": 4, "lw": 1.5}
        times, memory = [row["ms"][1] for row in rows], [row["MB"] for row in rows]
        axes[0].plot(sizes, times, label=f"{method}: {e['time']:.2f}", **line)
        axes[1].plot(sizes, memory, label=f"{method}: {e['memory']:.2f}", **line)
    panel(axes[0], "Selecting tokens: time", "visual tokens N", "ms, one thread", sizes)
    panel(axes[1], "Selecting tokens: memory", "visual tokens N", "MB beside the input", sizes)
    slopes(axes[0], sizes, (1, 2))
    slopes(axes[1], sizes, (1,))
    axes[1].set_ylim(top=100 * axes[1].get_ylim()[1])  # room for the legend


def routing(axes: Any, result: dict[str, Any]) -> None:
    """Prefill and routing over layers and over the batch."""
    names = {"unattached": "unattached prefill", "routed": "routed prefill", "routing": "routing alone"}
    for axis, over in zip(axes, ("layers", "batch"), strict=True):
        rows = result["routing_" + over]
        fitted = {e["what"]: e["time"] for e in result["exponents"] if e["over"] == over}
        sizes = [row[over] for row in rows]
        for (what, name), (colour, marker) in zip(names.items(), STYLES, strict=False):
            times = [row[what][1] for row in rows]
            label = f"{name}: {fitted[what]:.2f}"
            axis.plot(sizes, times, color=colour, marker=marker, ms=4, lw=1.5, label=label)
    layers = [row["layers"] for row in result["routing_layers"]]
    panel(axes[0], "Routing: layers, batch of 1", "layers", "ms, one thread", layers)
    batches = [row["batch"] for row in result["routing_batch"]]
    panel(axes[1], "Routing: batch, 8 layers", "batch", "ms, one thread", batches)


def draw(result: dict[str, Any]) -> Any:
    """Four panels; the numbers beside the names are fitted exponents."""
    figure = Figure(figsize=(10, 7.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    selection(axes[0], result)
    routing(axes[1], result)
    for axis in axes.flat:
        axis.legend(
            loc="upper left",
            fontsize=8,
            frameon=False,
            title="fitted exponent",
            title_fontsize=8,
            alignment="left",
        )
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "growth.png")
    options = parser.parse_args(arguments)
    figure = draw(read("growth"))
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    picture.quantize(64).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
