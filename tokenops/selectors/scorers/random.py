"""Random scores: the baseline every method has to beat, and the same choice wherever it runs."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from tokenops.errors import TokenOpsError
from tokenops.registry import register
from tokenops.selectors.checks import check_tokens
from tokenops.shapes import Bool, Float

_WORD = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)


def mix(word: Word) -> Word:
    """Scramble 32-bit words (a bijection), products staying below 2^63 so that no device overflows.

    >>> mix(1) == int(mix(torch.tensor(1)))
    True
    """
    word = (word + 0x9E3779B9) & _WORD
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _WORD
    word = ((word ^ (word >> 15)) * 0x31848BAB) & _WORD
    return word ^ (word >> 16)


@register("scorer", sample=lambda: RandomScore(0))
class RandomScore(nn.Module):
    r"""Uniform scores in [0, 1), a hash of the seed and of the token's place among the valid tokens.

    .. math:: s_i = 2^{-24} \lfloor \mathrm{mix}^2(i \oplus \mathrm{mix}(\mathrm{seed})) / 2^8 \rfloor

    Integer arithmetic only: the scores do not depend on the batch, the padding, the device or on how often a
    checkpointed layer is replayed, and every row with as many tokens gets the same ones. ``seed=None`` draws
    fresh scores from torch's global generator instead.

    Shapes: x (b n d), mask (b n) -> (b n) float32.

    Raises:
        TokenOpsError: a seed that is no int, x not (b n d).

    >>> RandomScore(seed=0)(torch.zeros(1, 3, 8))
    tensor([[0.2226, 0.4685, 0.3166]])
    """

    positional = True

    def __init__(self, seed: int | None = 0) -> None:
        super().__init__()
        if isinstance(seed, bool) or not isinstance(seed, int | None):
            raise TokenOpsError("RandomScore", "seed as an int or None", repr(seed))
        self.seed = seed

    def forward(
        self, x: Float[Tensor, "b n d"], *, mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n"]:
        """Scores of the tokens."""
        check_tokens("RandomScore", x, mask)
        if self.seed is None:
            return torch.rand(x.shape[:2], device=x.device)
        if mask is None:
            place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        else:
            place = (mask.cumsum(1) - 1).clamp(min=0)
        return (mix(mix(place ^ mix(self.seed))) >> 8).float() * 2.0**-24

    def __repr__(self) -> str:
        return f"RandomScore(seed={self.seed})"
