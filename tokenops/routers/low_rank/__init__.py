"""Low-rank attention: the scores of a layer's visual tokens at a few per cent of its cost."""

from tokenops.routers.low_rank.attention import LowRankAttention
from tokenops.routers.low_rank.scores import attention_scores

__all__ = ["LowRankAttention", "attention_scores"]
