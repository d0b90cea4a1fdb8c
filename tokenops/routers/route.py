"""Route: in chosen layers only some visual tokens run; the rest skips the layer or leaves for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokenops.budget import Keep, check_keep, keep_count
from tokenops.errors import TokenOpsError
from tokenops.registry import register
from tokenops.routers.schedules import Schedule, Steps, constant
from tokenops.routers.units import Units
from tokenops.selectors.checks import check_beside
from tokenops.selectors.scorers import feature_norm
from tokenops.selectors.topk import code_of
from tokenops.shapes import Bool, Float
from tokenops.signals import name_of, needs, supply
from tokenops.tokenmap import Selection

FATES = ("skip", "exit")
Scorer = Callable[..., Tensor]


@register("router", sample=lambda: Route(feature_norm, keep=0.5))
class Route(nn.Module):
    r"""Send the best visual tokens of each image, and all text, through a layer.

    .. math:: y_i = \mathrm{layer}(x_S)_i\ (i \in S), \qquad y_i = x_i\ (i \notin S), \qquad
        S = T \cup \bigcup_\text{images} \mathrm{top}_{k_l}(s^{(l)})

    ``fate="skip"``: a token that skips a layer is back in the next, which chooses afresh (ALVTS, arXiv
    2606.14277 §3; Mixture-of-Depths, arXiv 2404.02258). ``fate="exit"``: it is gone from all later layers
    (FastV, arXiv 2403.06764; PyramidDrop, arXiv 2410.17247). Tokens outside S give the layer no keys and
    values. They are scored again only where fewer may stay than are there.

    Args:
        scorer: ``(x, *, <signals>) -> scores (b n)`` on the layer's normed input, or one for each layer:
            ``{layer: scorer}``.
        keep: ratio or count of the visual tokens that enter the language model, per image; or a schedule
            ``layer -> keep``, None where all run (:func:`constant`, :func:`from_layer`, :func:`pyramid`,
            :func:`per_layer`, :func:`allocate`).
        fate: ``"skip"`` or ``"exit"``.

    Raises:
        TokenOpsError: something that cannot be called, a bad keep or an unknown fate.

    >>> route = Route(feature_norm, keep=1)
    >>> x = torch.tensor([[[9.0], [1.0], [3.0], [2.0]]])
    >>> chosen, inside = route.split(x, layer=0, units=Units.of(torch.tensor([[-1, 0, 0, -1]])))
    >>> inside.flatten(), route.merge(10 * inside, chosen, x).flatten()
    (tensor([9., 3., 2.]), tensor([90.,  1., 30., 20.]))
    """

    def __init__(
        self, scorer: Scorer | Mapping[Any, Any], keep: Keep | Schedule, *, fate: str = "skip"
    ) -> None:
        super().__init__()
        if isinstance(scorer, (Mapping, nn.ModuleDict)):
            scorer = _by_layer(scorer)
        elif not callable(scorer):
            raise TokenOpsError("Route", "a callable scorer or {layer: scorer}", type(scorer).__name__)
        if fate not in FATES:
            raise TokenOpsError("Route", f"fate among {', '.join(FATES)}", repr(fate))
        self.keep = keep if callable(keep) else check_keep(keep, who="Route")
        self.scorer, self.fate = scorer, fate

    @property
    def schedule(self) -> Schedule:
        """``layer -> keep``.

        Raises:
            TokenOpsError: a keep that was set to something else than a ratio or a count.

        >>> Route(feature_norm, keep=0.5).schedule(3)
        0.5
        """
        return self.keep if callable(self.keep) else constant(self.keep)

    def scorer_at(self, layer: int) -> Scorer:
        """The scorer of a layer.

        Raises:
            TokenOpsError: no scorer for this layer.

        >>> route = Route({2: nn.Identity()}, keep=0.5)
        >>> route.scorer_at(2), route.needs()
        (Identity(), {})
        """
        if not isinstance(self.scorer, nn.ModuleDict):
            return self.scorer
        if str(layer) not in self.scorer:
            raise TokenOpsError("Route", f"a scorer for layer {layer}", f"layers {', '.join(self.scorer)}")
        return self.scorer[str(layer)]

    def needs(self) -> dict[str, bool]:
        """Signals the scorers take: name -> required."""
        scorers = self.scorer.values() if isinstance(self.scorer, nn.ModuleDict) else [self.scorer]
        wanted: dict[str, bool] = {}
        for scorer in scorers:
            for name, must in needs(scorer).items():
                wanted[name] = must or wanted.get(name, False)
        return wanted

    def counts(self, layer: int, sizes: tuple[int, ...]) -> list[int]:
        """How many tokens of units of these sizes run in a layer.

        Raises:
            TokenOpsError: a bad keep of a schedule.

        >>> Route(feature_norm, keep=0.5).counts(0, (576, 9))
        [288, 4]
        """
        keep = self.schedule(layer)
        return list(sizes) if keep is None else [keep_count(keep, n, who="Route") for n in sizes]

    def split(
        self,
        x: Float[Tensor, "b n d"],
        *,
        layer: int,
        units: Units,
        mask: Bool[Tensor, "b n"] | None = None,
        alive: Bool[Tensor, "b n"] | None = None,
        k: int | None = None,
        **signals: Any,
    ) -> tuple[Selection, Float[Tensor, "b k d"]]:
        """The tokens that run in ``layer``, and their rows of x.

        ``mask`` is False at padding, which does not run; ``alive`` False where a token left earlier. ``k`` is
        the number of slots, the most tokens that a row runs; read from the device unless given.

        Raises:
            TokenOpsError: a required signal is missing, scores of another shape, units of another batch.
        """
        if units.unit.shape != x.shape[:2]:
            raise TokenOpsError("Route", f"units of {tuple(x.shape[:2])}", tuple(units.unit.shape))
        here = (units.unit == units.unit) if mask is None else mask
        here = here if alive is None else here & alive
        scorer = self.scorer_at(layer)
        whole = mask is None and alive is None and not needs(scorer).get("mask")
        given = {**signals, "visual": units.visual & here, "mask": None if whole else here}
        scores = scorer(x, **supply(scorer, given))
        check_beside(name_of(scorer), "scores", scores, x, None)
        kept = units.top(scores, self.counts(layer, units.sizes), here)
        chosen = replace(Selection.from_mask(units.with_text(kept, here), k), scores=scores)
        return chosen, chosen.reduce(x)

    def merge(
        self, ys: Float[Tensor, "b k d"], selection: Selection, x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """Both streams in their original order: ``ys`` where tokens ran, ``x`` where they did not."""
        return selection.lift(ys, into=x)

    def __repr__(self) -> str:
        if isinstance(self.scorer, nn.ModuleDict):
            scorer = "{" + ", ".join(f"{layer}: {made!r}" for layer, made in self.scorer.items()) + "}"
        else:
            scorer = code_of(self.scorer)
        keep = repr(self.keep) if isinstance(self.keep, (int, float, Steps)) else code_of(self.keep)
        return f"Route({scorer}, keep={keep}, fate={self.fate!r})"


def _by_layer(scorers: Mapping[Any, Any] | nn.ModuleDict) -> nn.ModuleDict:
    made = {}
    for layer, scorer in scorers.items():
        if not str(layer).isdecimal() or not isinstance(scorer, nn.Module):
            got = f"{layer!r}: {type(scorer).__name__}"
            raise TokenOpsError("Route", "{layer number: scorer module}", got)
        made[str(int(layer))] = scorer
    if not made:
        raise TokenOpsError("Route", "a scorer for at least one layer", "none")
    return nn.ModuleDict(made)
