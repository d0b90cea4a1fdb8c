"""Draw the pictures of ``docs/relaxations.md``.

python docs/draw_relaxations.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from tokenops.selectors.relaxations import (
    gumbel_topk,
    hard_topk,
    log_balance,
    logistic_topk,
    soft_topk,
    soft_topk_threshold,
    systematic_topk,
)

PICTURES = Path(__file__).parent / "pictures"
INK, FAINT, WARN = "#1b1b20", "#6b6b76", "#c0342b"
COLOURS = {
    "sigmoid": "#2257a8",
    "laplace": "#c46a1b",
    "gaussian": "#2e8b57",
    "capped_simplex": "#8a3fa0",
    "entmax15": "#b03a48",
}
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
SHADES = ("#0b2a55", "#2f6db5", "#7fb0dd", "#c4dcf0")
N, K = 24, 8


def scores() -> Tensor:
    """24 normal scores, best first."""
    return torch.randn(N, generator=torch.Generator().manual_seed(3)).sort(descending=True).values


def sheet(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes (rows columns)."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.tick_params(labelsize=8, colors=FAINT)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def masks() -> Figure:
    """The mask of each member at four temperatures."""
    x = scores()
    figure, axes = sheet(3, 2, 5.0, 6.2, sharex=True, sharey=True)
    *panels, corner = axes.flat
    for axis, name in zip(panels, COLOURS, strict=True):
        axis.step(range(N), hard_topk(x, K).float(), where="mid", color=FAINT, lw=0.8, ls=":")
        for tau, shade in zip(TEMPERATURES, SHADES, strict=True):
            p = soft_topk(x, K, method=name, temperature=tau)
            axis.plot(range(N), p, ".-", ms=3.5, lw=1.3, color=shade, label=f"τ = {tau:g}")
        axis.set_title(name, fontsize=12, color=INK)
    corner.set_axis_off()
    panels[-2].tick_params(labelbottom=True)  # nothing is drawn below it
    corner.legend(*panels[0].get_legend_handles_labels(), fontsize=11, frameon=False, loc="center")
    figure.supxlabel("token, best first", fontsize=11, color=FAINT)
    figure.supylabel(f"mask, sums to {K}", fontsize=11, color=FAINT)
    return figure


def jacobians() -> Figure:
    """dp/dx of each member at three temperatures, each panel on its own scale, roots of the entries drawn."""
    x, taus = scores().double(), TEMPERATURES[1:]
    figure, axes = sheet(len(COLOURS), len(taus), 5.0, 9.0)
    for column, tau in zip(axes.T, taus, strict=True):
        for axis, name in zip(column, COLOURS, strict=True):
            jacobian = torch.autograd.functional.jacobian(
                lambda x, name=name, tau=tau: soft_topk(x, K, method=name, temperature=tau), x
            )
            assert isinstance(jacobian, Tensor)
            most = float(jacobian.abs().max()) or 1.0
            root = jacobian.sign() * (jacobian.abs() / most).sqrt()
            axis.imshow(root, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(True)
            axis.spines[:].set_color("#c9c9d1")
            axis.set_xlabel(f"largest {most:.2g}", fontsize=10, color=FAINT)
        column[0].set_title(f"τ = {tau:g}", fontsize=12, color=INK)
    for axis, name in zip(axes[:, 0], COLOURS, strict=True):
        axis.set_ylabel(name, fontsize=12, color=INK)
    return figure


def balance() -> Figure:
    """Σp - k is flat away from its root; H has a slope between 1 and 2 everywhere."""
    figure, axes = sheet(1, 2, 9.5, 3.4)
    g = torch.Generator().manual_seed(1)
    kinds = {
        "normal": torch.randn(200, generator=g),
        "Cauchy": torch.empty(200).cauchy_(generator=g),
        "a gap of 30": torch.cat([torch.zeros(150), torch.full((50,), 30.0)]),
    }
    shift = torch.linspace(-40, 40, 801)
    styles = (("#2257a8", "-"), ("#c46a1b", "--"), ("#8a3fa0", "-"))
    for (name, x), (colour, dashes) in zip(kinds.items(), styles, strict=True):
        x, k = x.double(), 50
        at = soft_topk_threshold(x, k)[1] - shift.double()
        total = torch.sigmoid(x - at[:, None]).sum(-1) - k
        h = log_balance(x.expand(len(at), -1), k, at)
        axes[0][0].plot(shift, total, color=colour, ls=dashes, lw=1.6, label=name)
        axes[0][1].plot(shift, h, color=colour, ls=dashes, lw=1.6)
    wedge = axes[0][1]
    wedge.fill_between(shift, shift, 2 * shift, color="#d9d9e0", lw=0, label="between slopes 1 and 2")
    for axis, title in zip(axes[0], ("Σp − k: flat tails", "H = log B − log A"), strict=True):
        axis.axhline(0, color=FAINT, lw=0.6)
        axis.set_title(title, fontsize=11, color=INK)
        axis.set_xlabel("t − t*, in temperatures", fontsize=9, color=FAINT)
        axis.legend(fontsize=8, frameon=False)
    return figure


def gap() -> Figure:
    """The soft-hard gap of each member over the temperature."""
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    figure, axes = sheet(1, 1, 5.6, 3.3)
    taus = torch.logspace(-2, 1, 31)
    hard = hard_topk(x, 16).float()
    for name, colour in COLOURS.items():
        gaps = [
            float((soft_topk(x, 16, method=name, temperature=float(tau)) - hard).abs().mean()) for tau in taus
        ]
        axes[0][0].plot(taus, gaps, color=colour, lw=1.6, label=name)
    axis = axes[0][0]
    most = 2 * (16 / 64) * (1 - 16 / 64)
    axis.axhline(most, color=FAINT, lw=0.8, ls=":")
    axis.text(0.011, most + 0.006, "constant mask k/n", fontsize=8, color=FAINT)
    axis.set_xscale("log")
    axis.set_xlabel("temperature / standard deviation of the scores", fontsize=9, color=FAINT)
    axis.set_ylabel("mean |soft − hard|", fontsize=9, color=FAINT)
    axis.set_ylim(-0.01, 0.41)
    axis.legend(fontsize=8, frameon=False, loc="center left")
    return figure


def draws() -> Figure:
    """The mean of many hard draws minus the soft mask."""
    x, g, number = scores(), torch.Generator().manual_seed(0), 40_000
    p = soft_topk(x, K)
    figure, axes = sheet(1, 1, 6.4, 3.1)
    axis, many = axes[0][0], x.expand(number, -1)
    found = {
        "gumbel_topk(hard=True)": (gumbel_topk(many, K, hard=True, generator=g), "#c46a1b"),
        "logistic_topk": (logistic_topk(many, K, generator=g), "#2e8b57"),
        "systematic_topk": (systematic_topk(many, K, generator=g), "#2257a8"),
    }
    band = 2 * (p * (1 - p) / number).sqrt()
    axis.fill_between(range(N), -band, band, color="#d9d9e0", lw=0)
    for name, (drawn, colour) in found.items():
        axis.plot(range(N), drawn.mean(0) - p, ".-", ms=4, lw=1.2, color=colour, label=name)
    axis.axhline(0, color=FAINT, lw=0.6)
    axis.set_xlabel("token, best first", fontsize=9, color=FAINT)
    axis.set_ylabel("mean of the draws − soft mask", fontsize=9, color=FAINT)
    axis.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(exist_ok=True)
    for draw in (masks, jacobians, balance, gap, draws):
        draw().savefig(PICTURES / f"relaxations-{draw.__name__}.png", facecolor="white")


if __name__ == "__main__":
    main()
