"""Top-K: keep the tokens with the highest scores, softly while training if a relaxation is set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from tokenops.budget import Budget, Keep, keep_count, keep_counts
from tokenops.errors import TokenOpsError
from tokenops.kernels.topk import hard_topk
from tokenops.registry import register
from tokenops.selectors.checks import check_beside, check_tokens
from tokenops.selectors.scorers import feature_norm
from tokenops.shapes import Bool, Float
from tokenops.signals import name_of, needs, supply
from tokenops.tokenmap import Selection

Scorer = Callable[..., Tensor]
Relaxation = Callable[..., Tensor]


def code_of(component: object) -> str:
    """The expression that builds a component: a module's repr, a function's name.

    >>> code_of(functools.partial(feature_norm))
    'partial(feature_norm)'
    """
    if isinstance(component, functools.partial):
        parts = [code_of(component.func), *map(repr, component.args)]
        parts += [f"{name}={value!r}" for name, value in component.keywords.items()]
        return f"partial({', '.join(parts)})"
    if isinstance(component, nn.Module):
        return repr(component)
    return getattr(component, "__name__", None) or repr(component)


@register("selector", sample=lambda: TopK(feature_norm, keep=0.5))
class TopK(nn.Module):
    r"""The k highest-scoring tokens of every row, k from the budget and the row's own number of tokens.

    .. math:: \mathrm{keep}_i = 1 \iff s_i \text{ is among the } k \text{ largest},\quad
        k = \min(N, \max(1, \lfloor \text{keep} \cdot N + 10^{-6} \rfloor))

    Ties go to the lowest index, NaN scores count as the lowest. In training mode with a relaxation the
    Selection also carries ``gate = relax(scores, k, mask=mask)``, beside the same hard choice.

    Args:
        scorer: ``(x, *, <signals>) -> scores (b n)``, a module or a function.
        keep: ratio in (0, 1] as a float or count as an int; may be set later.
        relax: ``(scores, k, *, mask) -> soft mask (b n)`` or None.

    Shapes: x (b n d), mask (b n) False for padding -> Selection of (b n). Rows without tokens keep none.

    Raises:
        TokenOpsError: bad keep; x not (b n d); a mask, signal or score of another shape; an unknown signal.

    >>> chosen = TopK(feature_norm, keep=0.5)(torch.tensor([[[1.0], [-3.0], [0.0], [2.0]]]))
    >>> chosen.index
    tensor([[1, 3]])
    >>> from tokenops.selectors.scorers import cls_attention
    >>> TopK(cls_attention, keep=64).needs()
    {'cls_attention': True}
    """

    keep = Budget()

    def __init__(self, scorer: Scorer, keep: Keep, relax: Relaxation | None = None) -> None:
        super().__init__()
        if not callable(scorer):
            raise TokenOpsError("TopK", "a callable scorer", type(scorer).__name__)
        if relax is not None and not callable(relax):
            raise TokenOpsError("TopK", "a callable relax or None", type(relax).__name__)
        self.scorer, self.relax = scorer, relax
        self.keep = keep

    def needs(self) -> dict[str, bool]:
        """Signals the scorer takes: name -> required."""
        return {name: required for name, required in needs(self.scorer).items() if name != "mask"}

    def forward(
        self, x: Float[Tensor, "b n d"], *, mask: Bool[Tensor, "b n"] | None = None, **signals: Tensor | None
    ) -> Selection:
        """The tokens to keep.

        Shapes: x (b n d), mask (b n), signals as the scorer documents them -> Selection of (b n).
        """
        check_tokens("TopK", x, mask)
        known = self.needs()
        for name in signals:
            if name not in known:
                raise TokenOpsError("TopK", f"signals among {', '.join(known) or 'none'}", name)
        scores = self.scorer(x, **supply(self.scorer, {**signals, "mask": mask}))
        check_beside(name_of(self.scorer), "scores", scores, x, None)
        n = x.shape[1]
        if mask is None:
            k = slots = keep_count(self.keep, n)
        else:
            slots, k = None, keep_counts(self.keep, mask.sum(1))
        chosen = Selection.from_mask(hard_topk(scores, k, mask=mask), slots)
        gate = self.relax(scores, k, mask=mask) if self.training and self.relax is not None else None
        return replace(chosen, gate=gate, scores=scores)

    def __repr__(self) -> str:
        relax = "" if self.relax is None else f", relax={code_of(self.relax)}"
        return f"TopK({code_of(self.scorer)}, keep={self.keep}{relax})"
