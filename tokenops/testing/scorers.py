"""What every scorer promises: ``(x (b n d), *, <signals>) -> scores (b n)``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.shapes import check_shapes
from tokenops.signals import needs
from tokenops.testing.drawing import Draw, Law, assert_close, hold, signal

Maker = Callable[[str, int, int], Tensor]


def _arguments(scorer: Any, b: int, n: int, maker: Maker) -> dict[str, Tensor]:
    """The signals the scorer cannot do without."""
    return {name: maker(name, b, n) for name, required in needs(scorer).items() if required}


def _inputs(scorer: Any, draw: Draw, maker: Maker) -> tuple[Tensor, dict[str, Tensor]]:
    b, n = draw.integer(1, 3), draw.integer(1, 9)
    return draw.normal(b, n, width_of(scorer)), _arguments(scorer, b, n, maker)


def width_of(component: Any) -> int:
    """Feature width a component was built for, 8 if it takes any."""
    return getattr(component, "dim", 8)


def _tolerance(scores: Tensor) -> float:
    return 1e-5 * max(float(scores.detach().abs().max()), 1e-30) if scores.numel() else 0.0


def shape_dtype_finite(scorer: Any, draw: Draw, maker: Maker) -> None:
    """(b n), float32 or wider for any float input, finite, as annotated; the inputs stay as they are."""
    x, signals = _inputs(scorer, draw, maker)
    x = x.to(draw.choice(torch.float32, torch.bfloat16, torch.float16))
    before = x.clone()
    scores = scorer(x, **signals)
    assert scores.shape == x.shape[:2], "scores must be (b n)"
    assert torch.finfo(scores.dtype).bits >= 32, f"scores must be float32 or wider, not {scores.dtype}"
    assert scores.isfinite().all(), "scores must be finite"
    assert torch.equal(x, before), "x must not change"
    call = scorer.forward if isinstance(scorer, nn.Module) else scorer
    check_shapes(call, {"x": x, **signals}, scores)


def deterministic(scorer: Any, draw: Draw, maker: Maker) -> None:
    """The same input gives the same bits."""
    x, signals = _inputs(scorer, draw, maker)
    assert torch.equal(scorer(x, **signals), scorer(x, **signals)), "two calls must agree"


def permutation_equivariant(scorer: Any, draw: Draw, maker: Maker) -> None:
    """Tokens in another order get the same scores, unless the scorer is ``positional`` or reads a grid."""
    if getattr(scorer, "positional", False) or "grid" in needs(scorer):
        return
    x, signals = _inputs(scorer, draw, maker)
    order = draw.permutation(x.shape[1])
    scores = scorer(x, **signals)
    moved = scorer(x[:, order], **{name: value[:, order] for name, value in signals.items()})
    assert_close(moved, scores[:, order], _tolerance(scores))


def row_independent(scorer: Any, draw: Draw, maker: Maker) -> None:
    """A row's valid tokens score alone what they score in a padded batch."""
    x, signals = _inputs(scorer, draw, maker)
    mask = draw.mask(*x.shape[:2])
    given = {"mask": mask} if "mask" in needs(scorer) else {}
    scores = scorer(x, **given, **signals)
    for i, valid in enumerate(mask):
        kept = valid if given else torch.ones_like(valid)
        alone = scorer(x[i : i + 1, kept], **{name: s[i : i + 1, kept] for name, s in signals.items()})
        assert_close(alone[0], scores[i, kept], _tolerance(scores))


def padding_inert(scorer: Any, draw: Draw, maker: Maker) -> None:
    """Nothing stored at padding reaches the other tokens' scores or any gradient."""
    x, signals = _inputs(scorer, draw, maker)
    mask, filler = draw.mask(*x.shape[:2]), draw.choice(float("nan"), 1e30, float("inf"))
    given = {"mask": mask} if "mask" in needs(scorer) else {}
    results = []
    for content in (x, x.masked_fill(~mask[..., None], filler)):
        content = content.clone().requires_grad_()
        scores = scorer(content, **given, **signals)
        if given:
            assert scores.isfinite().all(), "padding must score a finite number"
        if scores.requires_grad:
            scores[mask].sum().backward()
        results.append((scores.detach()[mask], content.grad))
    (clean, clean_grad), (dirty, dirty_grad) = results
    assert_close(dirty, clean, _tolerance(clean))
    if clean_grad is not None and given:
        assert_close(dirty_grad, clean_grad, _tolerance(clean_grad))
        assert not dirty_grad[~mask].any(), "padding must get no gradient"


def gradients(scorer: Any, draw: Draw, maker: Maker) -> None:
    """Every parameter gets a finite gradient; analytic and numerical gradients agree in float64."""
    if not isinstance(scorer, nn.Module) or not list(scorer.parameters()):
        return
    x, signals = _inputs(scorer, draw, maker)
    scorer(x.to(draw.choice(torch.float32, torch.bfloat16)), **signals).sum().backward()
    for name, parameter in scorer.named_parameters():
        assert parameter.grad is not None, f"{name} must get a gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} must be finite"
    scorer.zero_grad()
    wide = copy.deepcopy(scorer).double()
    for parameter in wide.parameters():
        nn.init.normal_(parameter)
    point = x[:1, :4].double().requires_grad_()
    few = {name: value[:1, :4] for name, value in signals.items()}
    assert torch.autograd.gradcheck(lambda x: wide(x, **few), (point,), fast_mode=True)


def autocast_inert(scorer: Any, draw: Draw, maker: Maker) -> None:
    """Autocast does not coarsen the scores."""
    x, signals = _inputs(scorer, draw, maker)
    scores = scorer(x, **signals)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(scorer(x, **signals), scores, _tolerance(scores), exact_dtype=True)


def empty_batch(scorer: Any, draw: Draw, maker: Maker) -> None:
    """No rows, no scores."""
    n = draw.integer(1, 4)
    assert scorer(torch.zeros(0, n, width_of(scorer)), **_arguments(scorer, 0, n, maker)).shape == (0, n)


LAWS: tuple[Law, ...] = (
    shape_dtype_finite,
    deterministic,
    permutation_equivariant,
    row_independent,
    padding_inert,
    gradients,
    autocast_inert,
    empty_batch,
)


def check_scorer(scorer: Callable[..., Tensor], *, signals: Maker = signal) -> None:
    """Hold a scorer to every law; ``signals(name, b, n)`` makes the signals it needs.

    A scorer whose scores depend on the order of the tokens says so with an attribute ``positional = True``.

    Shapes: of the scorer: x (b n d), signals as in ``tokenops.signals.SIGNALS`` -> (b n).

    Raises:
        AssertionError: a law is broken.
        TokenOpsError: Hypothesis is not installed, or a signal is unknown to ``signals``.

    >>> check_scorer(lambda x: x.float().norm(dim=-1))
    """
    for law in LAWS:
        hold(law, scorer, maker=signals)
