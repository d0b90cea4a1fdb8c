"""Differentiable Top-K masks: ``(scores (b n), k, *, mask, <own knobs>) -> soft mask (b n)``."""

from tokenops.kernels.topk import hard_topk
from tokenops.selectors.relaxations.sigmoid import soft_topk

__all__ = ["hard_topk", "soft_topk"]
