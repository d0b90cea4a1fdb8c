"""Low-rank factors of a model's own attention, by truncated SVD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Family, find_parts
from tokenops.routers import LowRankAttention


def low_rank_factors(
    model: nn.Module,
    rank: int,
    *,
    layers: Iterable[int] | None = None,
    softmax: str = "joint",
    svd: str = "factors",
    scale: float | None = None,
    causal: bool = False,
    family: Family | None = None,
) -> nn.ModuleDict:
    r"""``{layer: LowRankAttention}`` of a model's decoder layers, for :func:`tokenops.recipes.alvts`.

    .. math:: W_Q \approx (U_R \Sigma_R^{1/2})(\Sigma_R^{1/2} V_R^\top), \qquad \text{likewise } W_K

    Args:
        model: of a known family.
        rank: R; the paper takes 256 for 7 B parameters, 128 for 3 B.
        layers: which decoder layers; all by default.
        softmax: ``"joint"`` or ``"head"``, as in :class:`~tokenops.routers.LowRankAttention`.
        svd: ``"factors"`` or ``"logits"``, as there.
        scale: factor on the logits. By default that of the layer for ``"head"``; for ``"joint"`` the same
            over the number of heads: the joint logits are then their mean, which ranks tokens more like the
            layer does than their sum.
        causal: whether a token looks at those before it only, as in the layer. The causal map favours the
            first tokens of an image whatever they show; on the package's pocket model it answered 64 % of
            questions where the other answered 86 %.
        family: as in :func:`tokenops.attach`.

    Returns:
        Modules on the layers' devices, float32, that require gradients; the model stays as it is.

    Raises:
        TokenOpsError: an unknown family, a layer that is not there, projections that are no plain linear
            layers (quantised, adapted) or that are normalised before the attention; a bad rank.

    Reference: ALVTS (arXiv:2606.14277) §3.2. Deviations: no causal mask and the mean of the
    heads' logits by default.
    """
    parts = find_parts(model, family)
    depth = len(parts.layers)
    if layers is not None and not isinstance(layers, Iterable):
        raise TokenOpsError("low_rank_factors", "layers as numbers", repr(layers))
    numbers = list(range(depth)) if layers is None else list(layers)
    wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < depth]
    if wrong or not numbers:
        raise TokenOpsError("low_rank_factors", f"layers in [0, {depth})", wrong or "none")
    options = {"softmax": softmax, "svd": svd, "scale": scale, "causal": causal}
    return nn.ModuleDict({str(n): _of_layer(n, parts.layers[n].self_attn, rank, options) for n in numbers})


def _of_layer(number: int, attention: Any, rank: int, options: dict[str, Any]) -> LowRankAttention:
    q, k = getattr(attention, "q_proj", None), getattr(attention, "k_proj", None)
    if type(q) is not nn.Linear or type(k) is not nn.Linear:
        got = f"{type(q).__name__} and {type(k).__name__}"
        raise TokenOpsError("low_rank_factors", f"plain linear q_proj and k_proj in layer {number}", got)
    for norm in ("q_norm", "k_norm"):
        if getattr(attention, norm, None) is not None:
            raise TokenOpsError("low_rank_factors", f"layer {number} without {norm}", "normalised heads")
    heads, kv_heads = (p.out_features // attention.head_dim for p in (q, k))
    if options["scale"] is None:
        joint = options["softmax"] != "head"
        options = options | {"scale": attention.scaling / heads if joint else attention.scaling}
    return LowRankAttention.from_weights(
        q.weight,
        k.weight,
        rank=rank,
        heads=heads,
        kv_heads=kv_heads,
        bias_q=q.bias,
        bias_k=k.bias,
        **options,
    )
