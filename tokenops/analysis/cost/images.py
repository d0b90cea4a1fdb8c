"""Images: how many patches the vision tower computes for the visual tokens that reach the language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tokenops.analysis.cost.architecture import Architecture
from tokenops.analysis.cost.work import Segments
from tokenops.errors import TokenOpsError

Tokens = int | Sequence[int | tuple[int, ...]]


@dataclass(frozen=True)
class Image:
    """One image or video.

    Attributes:
        tokens: visual tokens that reach the language model, line breaks left out.
        breaks: line breaks among them.
        patches: patches the tower embeds.
        full: (length, how many) of what attends to itself in blocks that see whole images.
        windows: the same in the other blocks.
        projected: rows that go through the projector.
    """

    tokens: int
    breaks: int
    patches: int
    full: Segments
    windows: Segments
    projected: int


def images_of(arch: Architecture, tokens: Tokens) -> tuple[Image, ...]:
    """The images of one sample: a number of tokens for one image, or a list with an entry for each.

    An entry is a number of tokens or a size: (height, width) in pixels for LLaVA-NeXT, (frames, rows,
    columns) in patches for Qwen2.5-VL.

    * LLaVA computes whole views: n tokens cost ⌈n / tokens of a view⌉ of them, CLS token included. LLaVA-NeXT
      cuts padding off afterwards, so it computes more than n; a size says exactly how much and adds the line
      breaks, a number has none.
    * Qwen computes merge² patches a token. A number stands for one image of one frame whose windows are full
      but for one; a size says where windows are cut.

    Raises:
        TokenOpsError: numbers below 0, or a size that the family does not have.
    """
    entries: Any = [tokens] if isinstance(tokens, int) else tokens
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise TokenOpsError("cost", "tokens as an int or a list of ints or sizes", repr(tokens))
    return tuple(_image(arch, entry) for entry in entries)


def _image(arch: Architecture, entry: Any) -> Image:
    if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
        return _viewed(arch, entry, 0, None) if arch.per_view else _merged(arch, entry)
    size = tuple(entry) if isinstance(entry, (tuple, list)) else ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    if whole and arch.family == "llava_next" and len(size) == 2:
        return _anyres(arch, size)
    if whole and not arch.per_view and len(size) == 3 and not any(n % arch.tower.merge for n in size[1:]):
        return _gridded(arch, *size)
    sizes = {
        "llava_next": " or a size (height, width)",
        "qwen2_5_vl": f" or a grid (frames, rows, columns), rows and columns multiples of {arch.tower.merge}",
    }
    expected = f"an image of {arch.family} as an int >= 0{sizes.get(arch.family, '')}"
    raise TokenOpsError("cost", expected, repr(entry))


def _viewed(arch: Architecture, tokens: int, breaks: int, views: int | None) -> Image:
    views = -(-tokens // arch.per_view) if views is None else views
    patches = arch.tower.side**2
    segments = ((patches + arch.tower.cls, views),)
    return Image(tokens, breaks, views * patches, segments, segments, views * arch.per_view)


def _anyres(arch: Architecture, size: tuple[int, ...]) -> Image:
    """The model's own packing, run on ones for patches and zeros for line breaks."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

    config = arch.config
    views = image_size_to_num_patches(
        list(size), config.image_grid_pinpoints, config.vision_config.image_size
    )
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),  # type: ignore[arg-type]
        [torch.ones(views, arch.per_view, 1)],
        torch.tensor([size]),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_newline=torch.zeros(1),
    )
    tokens = int(packed[0].sum())
    return _viewed(arch, tokens, packed[0].shape[0] - tokens, views)


def _merged(arch: Architecture, tokens: int) -> Image:
    patches, window = tokens * arch.tower.merge**2, arch.tower.window**2
    windows = ((window, patches // window), (patches % window, 1))
    return Image(tokens, 0, patches, ((patches, 1),), windows, tokens)


def _gridded(arch: Architecture, frames: int, rows: int, columns: int) -> Image:
    merge, window = arch.tower.merge, arch.tower.window
    cuts = [
        Counter(min(window, size - start) for start in range(0, size, window)) for size in (rows, columns)
    ]
    windows = Counter()
    for height, down in cuts[0].items():
        for width, across in cuts[1].items():
            windows[height * width] += down * across * frames
    patches = frames * rows * columns
    tokens = patches // merge**2
    return Image(tokens, 0, patches, ((rows * columns, frames),), tuple(windows.items()), tokens)
