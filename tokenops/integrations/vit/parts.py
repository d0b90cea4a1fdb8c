"""Which vision transformers of timm are known, as data, and where their parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from tokenops.errors import TokenOpsError

MODELS = ("VisionTransformer", "Eva")
ATTENTION = {"cls_attention", "received_attention"}
# class of a block -> dotted path to the norm before its attention, None where that reads x itself
BLOCKS: Mapping[str, str | None] = {
    "Block": "norm1",
    "ResPostBlock": None,
    "ParallelScalingBlock": "in_norm",
    "DiffParallelScalingBlock": "in_norm",
    "ParallelThingsBlock": "attns.0.norm",
    "EvaBlock": "norm1",
    "EvaBlockPostNorm": None,
}


def is_timm(model: Any) -> bool:
    """Whether a model is one of timm's.

    >>> is_timm(nn.Linear(2, 2))
    False
    """
    return any(c.__module__.split(".")[0] == "timm" for c in type(model).__mro__)


def _kind(module: Any, known: Any) -> str | None:
    """The first of timm's classes that a module is one of and that is known."""
    names = [c.__name__ for c in type(module).__mro__ if c.__module__.startswith("timm.")]
    return next((name for name in names if name in known), None)


@dataclass(frozen=True)
class VitParts:
    """A vision transformer whose blocks take (b n d), prefix tokens (CLS, distillation, registers) first."""

    model: Any

    @classmethod
    def of(cls, model: Any) -> VitParts:
        """Look whether everything is where it should be.

        Raises:
            TokenOpsError: an unknown model of timm, or unknown blocks.
        """
        if _kind(model, MODELS) is None:
            expected = f"a timm model among {', '.join(MODELS)} (blocks on (b, n, d), one resolution)"
            raise TokenOpsError("attach", expected, type(model).__name__)
        for block in model.blocks:
            if _kind(block, BLOCKS) is None:
                got = type(block).__name__
                raise TokenOpsError("attach", f"blocks among {', '.join(BLOCKS)}", got)
        return cls(model)

    @property
    def blocks(self) -> list[Any]:
        """Its blocks."""
        return list(self.model.blocks)

    @property
    def weight(self) -> Tensor:
        """A parameter of the blocks: their device and dtype."""
        return next(self.model.blocks.parameters())

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.model.num_prefix_tokens)

    def signals(self) -> set[str]:
        """What the attention of a block can show the next one."""
        if any(readable_attention(block) is None for block in self.blocks):
            return set()
        cls = getattr(self.model, "has_class_token", False)
        return ATTENTION if cls else ATTENTION - {"cls_attention"}


def normed(block: Any, x: Tensor) -> Tensor:
    """What the attention of a block reads, (b n d)."""
    path = BLOCKS[_kind(block, BLOCKS) or ""]
    return x if path is None else attrgetter(path)(block)(x)


def readable_attention(block: Any) -> nn.Module | None:
    """The attention of a block if its ``q_norm`` and ``k_norm`` put out what it multiplies, (b h n e)."""
    attention = getattr(block, "attn", None)
    return attention if _kind(attention, ("Attention",)) else None
