"""Pictures of a decision: kept tokens bright, dropped ones dimmed, method by method and budget by budget."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenops.errors import TokenOpsError, check_ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIM = 0.22
"""Share of its contrast with the ground that a dropped token keeps."""
GROUND = (24, 24, 30)
_INK, _FAINT, _RIGHT, _WRONG = "#1b1b20", "#6b6b76", "#1a7f37", "#c0342b"
_CELL, _TOP, _LEFT, _GAP, _CAPTION = 1.72, 1.46, 1.5, 0.16, 0.30
_FONTS = {"title": 16, "header": 11.5, "caption": 10, "foot": 8.5}
_OUTLINE = (255, 214, 102)
_LONGEST = 24


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of the sheet.

    Attributes:
        pixels: (h w 3) uint8.
        kept: (rows columns) bool, True for the tokens that stayed.
        caption: a few words under it.
        right: colours the caption green or red; None leaves it grey.

    >>> black, kept = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.tensor([[True, False]])
    >>> panel = Panel(black, kept, "seven", right=True)
    >>> panel.caption, int(panel.kept.sum())
    ('seven', 1)
    """

    pixels: Tensor
    kept: Tensor
    caption: str = ""
    right: bool | None = None


def kept_mask(grid: Tensor, rows: int, columns: int) -> Tensor:
    """``grid`` (k 3) of a :class:`~tokenops.integrations.Trace` as a (rows columns) mask.

    Raises:
        TokenOpsError: another shape, several frames or crops, or a token outside the rows and columns.

    >>> kept_mask(torch.tensor([[0, 0, 1], [0, 1, 0]]), 2, 2)
    tensor([[False,  True],
            [ True, False]])
    """
    if grid.ndim != 2 or grid.shape[1] != 3:
        raise TokenOpsError("kept_mask", "grid (k 3) as (frame or crop, row, column)", tuple(grid.shape))
    frame, row, column = grid.long().unbind(1)
    if bool((frame != 0).any()):
        raise TokenOpsError("kept_mask", "one frame or crop", f"number {int(frame.max())}")
    if bool(((row < 0) | (row >= rows) | (column < 0) | (column >= columns)).any()):
        got = f"row {int(row.max())}, column {int(column.max())}"
        raise TokenOpsError("kept_mask", f"tokens of {rows} rows and {columns} columns", got)
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=grid.device)
    mask[row, column] = True
    return mask


def highlight(pixels: Tensor, kept: Tensor, *, scale: int = 1, dim: float = DIM) -> Tensor:
    """``pixels`` (h w 3) uint8 with the dropped tokens grey and dark, enlarged ``scale`` times.

    From ``scale`` 4 on, an outline runs along the border between kept and dropped tokens.

    Raises:
        TokenOpsError: no (h w 3) uint8, a mask that does not divide it, a scale below 1, dim outside [0, 1].

    >>> white = torch.full((4, 4, 3), 255, dtype=torch.uint8)
    >>> highlight(white, torch.tensor([[True, False], [False, False]]))[::2, ::2, 0]
    tensor([[255,  75],
            [ 75,  75]], dtype=torch.uint8)
    """
    _check_picture(pixels, kept, scale, dim)
    height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
    large = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1).float()
    cell_h, cell_w = height // kept.shape[0], width // kept.shape[1]
    stays = kept.repeat_interleave(cell_h, 0).repeat_interleave(cell_w, 1)
    ground = large.new_tensor(GROUND)
    grey = (large @ large.new_tensor([0.299, 0.587, 0.114]))[..., None]
    dimmed = ground + dim * (grey - ground)
    out = torch.where(stays[..., None], large, dimmed)
    if scale >= 4:
        out = torch.where(_border(stays, scale // 3)[..., None], large.new_tensor(_OUTLINE), out)
    return out.round().clamp(0, 255).to(torch.uint8)


def _border(stays: Tensor, width: int) -> Tensor:
    """(h w) True on the kept pixels within ``width`` of a dropped one."""
    dropped = (~stays).float()[None, None]
    return (nn.functional.max_pool2d(dropped, 2 * width + 1, stride=1, padding=width)[0, 0] > 0) & stays


def _check_picture(pixels: Tensor, kept: Tensor, scale: int, dim: float) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
        raise TokenOpsError("highlight", "pixels (h w 3) uint8", f"{tuple(pixels.shape)} {pixels.dtype}")
    whole = kept.ndim == 2 and all(n and not s % n for s, n in zip(pixels.shape, kept.shape, strict=False))
    if kept.dtype != torch.bool or not whole:
        expected = f"a bool mask whose rows and columns divide {tuple(pixels.shape[:2])}"
        raise TokenOpsError("highlight", expected, f"{tuple(kept.shape)} {kept.dtype}")
    check_ints("highlight", scale=(scale, 1))
    if not 0.0 <= dim <= 1.0:
        raise TokenOpsError("highlight", "dim in [0, 1]", dim)


def draw_panels(
    panels: Sequence[Sequence[Panel]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    subtitle: str = "",
    footer: str = "",
) -> bytes:
    r"""``panels[row][column]`` as the bytes of a PNG (matplotlib, no display needed).

    Raises:
        TokenOpsError: panels that are not one list per row with one panel per column, or no matplotlib.

    >>> panel = Panel(torch.zeros(8, 8, 3, dtype=torch.uint8), torch.tensor([[True, False]]))
    >>> draw_panels([[panel]], rows=["uniform"], columns=["50 %"], title="Kept")[:4]
    b'\x89PNG'
    """
    ragged = len(panels) != len(rows) or any(len(line) != len(columns) for line in panels)
    if ragged or not rows or not columns:
        got = [len(line) for line in panels]
        raise TokenOpsError("draw_panels", f"{len(rows)} x {len(columns)} panels", got)
    figure, bottom = _sheet(len(rows), len(columns), bool(footer))
    _write_texts(figure, title, subtitle, footer)
    for i, line in enumerate(panels):
        for j, panel in enumerate(line):
            axes = _place(figure, i, j, len(rows), bottom)
            _show(axes, panel)
            if i == 0:
                _head(axes, columns[j])
            if j == 0:
                where = {"transform": axes.transAxes, "ha": "right", "va": "center", "linespacing": 1.35}
                axes.text(-0.09, 0.5, rows[i], fontsize=_FONTS["header"], color=_INK, **where)
    png = io.BytesIO()
    figure.savefig(png, format="png", facecolor="white")
    return png.getvalue()


def _sheet(rows: int, columns: int, footer: bool) -> tuple[Figure, float]:
    """An empty sheet in inches, and the room below the lowest row."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TokenOpsError("draw_panels", "matplotlib: pip install 'tokenops[demo]'", error) from error
    bottom = 0.42 if footer else 0.12
    width = _LEFT + columns * (_CELL + _GAP) + 0.2
    height = _TOP + rows * (_CELL + _CAPTION + _GAP) + bottom
    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    return figure, bottom


def _place(figure: Figure, row: int, column: int, rows: int, bottom: float) -> Axes:
    width, height = figure.get_size_inches()
    left = _LEFT + column * (_CELL + _GAP)
    low = bottom + (rows - 1 - row) * (_CELL + _CAPTION + _GAP) + _CAPTION
    return figure.add_axes((left / width, low / height, _CELL / width, _CELL / height))


def _write_texts(figure: Figure, title: str, subtitle: str, footer: str) -> None:
    width, height = figure.get_size_inches()
    x = 0.28 / width
    figure.text(x, 1 - 0.42 / height, title, fontsize=_FONTS["title"], color=_INK, weight="bold", va="center")
    figure.text(x, 1 - 0.76 / height, subtitle, fontsize=_FONTS["header"], color=_FAINT, va="center")
    figure.text(x, 0.2 / height, footer, fontsize=_FONTS["foot"], color=_FAINT, va="center")


def _head(axes: Axes, text: str) -> None:
    """A column's title, and in smaller letters what follows its first line."""
    first, _, rest = text.partition("\n")
    axes.set_title(first, fontsize=_FONTS["header"], color=_INK, weight="bold", pad=22 if rest else 7)
    where = {"transform": axes.transAxes, "ha": "center", "va": "bottom"}
    axes.text(0.5, 1.035, rest, fontsize=_FONTS["caption"], color=_FAINT, **where)


def _show(axes: Axes, panel: Panel) -> None:
    scale = max(1, 576 // panel.pixels.shape[0])
    axes.imshow(highlight(panel.pixels, panel.kept, scale=scale).numpy(), interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour = {None: _FAINT, True: _RIGHT, False: _WRONG}[panel.right]
    caption = panel.caption
    if len(caption) > _LONGEST:
        caption = f"{caption[: _LONGEST - 3]}…{caption[-2:]}"
    axes.set_xlabel(caption, fontsize=_FONTS["caption"], color=colour, labelpad=4)
