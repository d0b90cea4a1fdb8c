"""Scorers: ``(x (b n d), *, <signals>) -> scores (b n)``, higher means keep."""

from tokenops.selectors.scorers.cls_attention import cls_attention
from tokenops.selectors.scorers.feature_norm import feature_norm
from tokenops.selectors.scorers.last_attention import last_attention, next_attention
from tokenops.selectors.scorers.learned import LearnedScorer
from tokenops.selectors.scorers.random import RandomScore
from tokenops.selectors.scorers.received_attention import received_attention

__all__ = [
    "LearnedScorer",
    "RandomScore",
    "cls_attention",
    "feature_norm",
    "last_attention",
    "next_attention",
    "received_attention",
]
