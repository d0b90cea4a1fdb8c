"""What every selector promises: ``(x (b n d), *, mask, <signals>) -> Selection``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenops.budget import keep_counts
from tokenops.errors import TokenOpsError
from tokenops.shapes import check_shapes
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, hold, signal
from tokenops.testing.tokenmaps import check_selection
from tokenops.tokenmap import Selection

Maker = Callable[[str, int, int], Tensor]
WIDTH = 8


def _signals(selector: Any, b: int, n: int, maker: Maker) -> dict[str, Tensor]:
    return {name: maker(name, b, n) for name, required in needs(selector).items() if required}


def _inputs(selector: Any, draw: Draw, maker: Maker) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    b, n = draw.integer(1, 4), draw.integer(1, 12)
    return draw.normal(b, n, WIDTH), draw.mask(b, n), _signals(selector, b, n, maker)


def _counts(selector: Any, mask: Tensor) -> Tensor | None:
    """What the budget promises, for selectors that have one number for it."""
    keep = getattr(selector, "keep", None)
    return None if keep is None else keep_counts(keep, mask.sum(1))


def exact_and_valid(selector: Any, draw: Draw, maker: Maker) -> None:
    """The laws of Selection, exactly k of each row's own tokens; the inputs stay as they are."""
    x, mask, signals = _inputs(selector, draw, maker)
    x = x.to(draw.choice(torch.float32, torch.bfloat16, torch.float16, torch.float64))
    before = x.clone()
    chosen = selector(x, mask=mask, **signals)
    check_selection(chosen, mask, _counts(selector, mask))
    check_selection(selector(x, **signals), None, _counts(selector, torch.ones_like(mask)))
    check_shapes(getattr(selector, "forward", selector), {"x": x, "mask": mask, **signals}, chosen)
    assert torch.equal(x, before), "x must not change"


def all_valid_mask_is_no_mask(selector: Any, draw: Draw, maker: Maker) -> None:
    """A mask of ones changes nothing, and two calls agree."""
    x, mask, signals = _inputs(selector, draw, maker)
    plain, masked = selector(x, **signals), selector(x, mask=torch.ones_like(mask), **signals)
    assert torch.equal(plain.index, masked.index), "a mask of ones must change nothing"
    assert torch.equal(plain.valid, masked.valid), "a mask of ones must change nothing"


def row_independent(selector: Any, draw: Draw, maker: Maker) -> None:
    """A row keeps alone, without its padding, what it keeps in a batch."""
    x, mask, signals = _inputs(selector, draw, maker)
    together = selector(x, mask=mask, **signals).mask
    for i, valid in enumerate(mask):
        few = {name: value[i : i + 1, valid] for name, value in signals.items()}
        alone = selector(x[i : i + 1, valid], **few)
        assert torch.equal(alone.mask[0], together[i, valid]), (
            "a row must keep alone what it keeps in a batch"
        )


def padding_inert(selector: Any, draw: Draw, maker: Maker) -> None:
    """Nothing stored at padding changes the choice."""
    x, mask, signals = _inputs(selector, draw, maker)
    filler = draw.choice(float("nan"), 1e30, float("inf"), -float("inf"))
    clean = selector(x, mask=mask, **signals)
    dirty = selector(x.masked_fill(~mask[..., None], filler), mask=mask, **signals)
    assert torch.equal(clean.mask, dirty.mask), "padding must not change the choice"


def survives_nan(selector: Any, draw: Draw, maker: Maker) -> None:
    """NaN features leave the number kept, and every other row, as it is."""
    x, mask, signals = _inputs(selector, draw, maker)
    broken = x.clone()
    broken[0, 0] = float("nan")
    before = selector(x, mask=mask, **signals)
    chosen = selector(broken, mask=mask, **signals)
    check_selection(chosen, mask, _counts(selector, mask))
    assert torch.equal(chosen.mask[1:], before.mask[1:]), "NaN must stay in its row"


def empty_batch(selector: Any, draw: Draw, maker: Maker) -> None:
    """No rows, or rows without tokens, keep none."""
    n = draw.integer(1, 5)
    none = selector(torch.zeros(0, n, WIDTH), **_signals(selector, 0, n, maker))
    assert none.mask.shape == (0, n), "no rows in, no rows out"
    bare = selector(torch.zeros(2, 0, WIDTH), **_signals(selector, 2, 0, maker))
    assert bare.mask.shape == (2, 0), "no tokens in, no tokens out"


def refuses_bad_input(selector: Any, draw: Draw, maker: Maker) -> None:
    """Features of another rank, a mask of another shape or dtype, an unknown signal: TokenOpsError."""
    x, mask, signals = _inputs(selector, draw, maker)
    wrong: list[Callable[[], Selection]] = [
        lambda: selector(x[0], mask=mask, **signals),
        lambda: selector(x.long(), mask=mask, **signals),
        lambda: selector(x, mask=mask[:, :-1], **signals),
        lambda: selector(x, mask=mask.float(), **signals),
    ]
    for call in wrong:
        try:
            call()
        except TokenOpsError:
            continue
        raise AssertionError("bad input must raise TokenOpsError")


LAWS: tuple[Law, ...] = (
    exact_and_valid,
    all_valid_mask_is_no_mask,
    row_independent,
    padding_inert,
    survives_nan,
    empty_batch,
    refuses_bad_input,
)


def check_selector(selector: Callable[..., Selection], *, signals: Maker = signal) -> None:
    """Hold a selector to every law; ``signals(name, b, n)`` makes the signals it needs.

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed, or a signal is unknown to ``signals``.

    >>> from tokenops.selectors import UniformGrid
    >>> check_selector(UniformGrid(0.5))
    """
    for law in LAWS:
        hold(law, selector, maker=signals)
