"""Differentiable Top-K masks: ``(scores (b n), k, *, mask, <own knobs>) -> soft mask (b n)``."""

from tokenops.kernels.topk import hard_topk
from tokenops.selectors.relaxations.capped_simplex import capped_simplex_topk, sparsemax
from tokenops.selectors.relaxations.curves import Curve
from tokenops.selectors.relaxations.entmax import entmax15, entmax_curve, entmax_topk
from tokenops.selectors.relaxations.family import log_balance, soft_topk, soft_topk_threshold
from tokenops.selectors.relaxations.gaussian import gaussian_topk
from tokenops.selectors.relaxations.gumbel import gumbel_topk
from tokenops.selectors.relaxations.laplace import laplace_topk
from tokenops.selectors.relaxations.logistic import logistic_topk
from tokenops.selectors.relaxations.noise import replay
from tokenops.selectors.relaxations.perturbed import perturbed_topk
from tokenops.selectors.relaxations.sigmoid import sigmoid_topk
from tokenops.selectors.relaxations.systematic import systematic_topk

__all__ = [
    "Curve",
    "capped_simplex_topk",
    "entmax15",
    "entmax_curve",
    "entmax_topk",
    "gaussian_topk",
    "gumbel_topk",
    "hard_topk",
    "laplace_topk",
    "log_balance",
    "logistic_topk",
    "perturbed_topk",
    "replay",
    "sigmoid_topk",
    "soft_topk",
    "soft_topk_threshold",
    "sparsemax",
    "systematic_topk",
]
