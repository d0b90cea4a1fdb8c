"""Random selection: k tokens by chance, the same k on every device."""

from __future__ import annotations

from tokenops.budget import Keep
from tokenops.registry import register
from tokenops.selectors.scorers import RandomScore
from tokenops.selectors.topk import TopK


@register("selector", sample=lambda: Random(0.5))
def Random(keep: Keep, seed: int | None = 0) -> TopK:
    r"""``TopK(RandomScore(seed), keep)``: exactly k tokens drawn uniformly without replacement.

    .. math:: P(i \in S) = k / N

    Raises:
        TokenOpsError: a bad keep, a seed that is no int.

    >>> Random(0.2)
    TopK(RandomScore(seed=0), keep=0.2)
    """
    return TopK(RandomScore(seed), keep)
