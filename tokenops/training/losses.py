"""Losses that pull a soft mask towards its hard twin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from tokenops.errors import TokenOpsError
from tokenops.shapes import Bool, Float


def soft_hard_bce(
    soft: Float[Tensor, "b n"],
    hard: Bool[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    weight: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    r"""Binary cross-entropy between a soft mask and the hard choice: mean over tokens, then over images.

    .. math:: \sum_b w_b \frac1{N_b} \sum_i -h_{bi} \log m_{bi} - (1 - h_{bi}) \log(1 - m_{bi}),
        \quad w_b = 1/B \text{ unless given}

    ``mask`` marks the real tokens. Every image counts alike, however many tokens it has. Gradient flows to
    ``soft`` only. VisionSelector, arXiv 2510.16598, §3.3.

    Raises:
        TokenOpsError: shapes that differ, a weight that is not (b,).

    >>> import torch
    >>> soft, hard = torch.tensor([[0.5, 0.5]]), torch.tensor([[True, False]])
    >>> soft_hard_bce(soft, hard, torch.ones_like(hard))
    tensor(0.6931)
    """
    _check("soft_hard_bce", soft, hard, mask)
    if weight is not None and weight.shape != soft.shape[:1]:
        raise TokenOpsError("soft_hard_bce", f"weight {tuple(soft.shape[:1])}", tuple(weight.shape))
    soft = _wide(soft).masked_fill(~mask, 0.0).clamp(0.0, 1.0)
    target = (hard & mask).to(soft.dtype)
    unknown = soft.isnan()
    # autocast refuses this loss on GPUs, in float32 too; a NaN there ends the process
    with torch.autocast(soft.device.type, enabled=False):
        each = binary_cross_entropy(soft.masked_fill(unknown, 0.5), target, reduction="none")
    each = each.masked_fill(unknown, torch.nan)
    counts = mask.sum(1)
    per_image = each.sum(1) / counts.clamp(min=1)
    if weight is None:
        return per_image.sum() / (counts > 0).sum().clamp(min=1)
    return (per_image * weight).sum()


def soft_hard_gap(
    soft: Float[Tensor, "b n"], hard: Bool[Tensor, "b n"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    r"""Mean absolute difference between soft and hard mask over real tokens.

    .. math:: \frac{1}{\sum_b N_b} \sum_b \sum_i |m_{bi} - h_{bi}|

    over the real tokens of all images together; 0 when training has closed the gap.

    Raises:
        TokenOpsError: shapes that differ.

    >>> import torch
    >>> hard = torch.tensor([[True, False]])
    >>> soft_hard_gap(torch.tensor([[0.75, 0.25]]), hard, torch.ones_like(hard))
    tensor(0.2500)
    """
    _check("soft_hard_gap", soft, hard, mask)
    soft = _wide(soft)
    difference = (soft - hard.to(soft.dtype)).abs().masked_fill(~mask, 0.0)
    return difference.sum() / mask.sum().clamp(min=1)


def _check(who: str, soft: Tensor, hard: Tensor, mask: Tensor) -> None:
    if soft.ndim != 2 or not soft.shape == hard.shape == mask.shape:
        got = (tuple(soft.shape), tuple(hard.shape), tuple(mask.shape))
        raise TokenOpsError(who, "three tensors of one shape (b n)", got)
    if hard.dtype != torch.bool or mask.dtype != torch.bool:
        raise TokenOpsError(who, "hard and mask of dtype bool", (hard.dtype, mask.dtype))


def _wide(soft: Tensor) -> Tensor:
    return soft.to(torch.promote_types(soft.dtype, torch.float32))
