"""Tiny vision transformers of timm, and a slow reference that runs all tokens and hides some by masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor

from tokenops.routers import Route

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
NO_CLASS = {"class_token": False}
ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "plain": (VisionTransformer, {}),
    "oblong": (VisionTransformer, {"img_size": (16, 28)}),
    "layer scale, qk norm": (VisionTransformer, {"init_values": 0.1, "qk_norm": True}),
    "registers": (VisionTransformer, {"reg_tokens": 3, "no_embed_class": True, "global_pool": "avg"}),
    "distilled": (VisionTransformerDistilled, {}),
    "siglip": (VisionTransformer, {**NO_CLASS, "global_pool": "map"}),
    "no class, average": (VisionTransformer, {**NO_CLASS, "global_pool": "avg"}),
    "clip": (VisionTransformer, {"pre_norm": True}),
    "refined pooling": (VisionTransformer, {"global_pool": "prr"}),
    "post norm": (VisionTransformer, {"block_fn": ResPostBlock}),
    "parallel": (VisionTransformer, {"block_fn": ParallelScalingBlock}),
    "two by two": (VisionTransformer, {"block_fn": ParallelThingsBlock}),
    "differential": (VisionTransformer, {"attn_layer": "diff"}),
    "eva": (Eva, {}),
    "eva, rope": (Eva, {**ROPE, "num_reg_tokens": 2}),
    "eva, rope by layer": (Eva, {**ROPE, "rope_type": "mixed"}),
    "eva, rope of dinov3": (Eva, {**ROPE, "rope_type": "dinov3", "use_post_norm": True}),
}
LOOKING = ("plain", "oblong", "layer scale, qk norm", "registers", "distilled")
EVERY = tuple(FAMILIES)


def model(family: str = "plain", **changes: Any) -> Any:
    """With weights so far from zero that a wrong token shows far above rounding."""
    torch.manual_seed(0)
    kind, arguments = FAMILIES[family]
    made = kind(**{**TINY, **arguments, **changes}).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def pictures(vit: Any, rows: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    h, w = vit.patch_embed.img_size if size is None else size
    return torch.randn(rows, 3, h, w, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@dataclass
class Ran:
    """What the reference did: who was kept (b n) at every block, states after it, features at the end."""

    kept: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None


def tokens(vit: Any, x: Tensor) -> tuple[Tensor, Any]:
    """What enters the blocks, and the rotary tables."""
    x = vit._pos_embed(vit.patch_embed(x))
    x, rope = x if isinstance(x, tuple) else (x, None)
    return vit.norm_pre(x), rope


def reference(
    vit: Any,
    pixels: Tensor,
    route: Route | None = None,
    score: Callable[..., Tensor] | None = None,
    first: Tensor | None = None,
    embedded: Tensor | None = None,
) -> Ran:
    """Run the blocks on everything, with masks. ``score(block, x, map) -> (b n)``, map of the block before.

    ``first`` (b p) True at the patches that are there from the start.
    """
    x, rope = tokens(vit, pixels)
    x = x if embedded is None else embedded
    prefix, ran = vit.num_prefix_tokens, Ran()
    here = torch.ones(x.shape[:2], dtype=torch.bool)
    if first is not None:
        here[:, prefix:] = first
    entered, seen = int(here[0, prefix:].sum()), None
    for layer, block in enumerate(vit.blocks):
        keep = None if route is None else route.schedule(layer)
        kept = here.clone()
        if keep is not None:
            k = keep if isinstance(keep, int) else max(1, int(keep * entered + 1e-6))
            scores = score(block, x, seen).detach()
            for row in range(len(x)):
                there = [i for i in range(prefix, x.shape[1]) if here[row, i]]
                best = sorted(there, key=lambda i: -float(scores[row, i]))[:k]
                kept[row, prefix:] = False
                kept[row, best] = True
            if route.fate == "exit":
                here = kept
        seen = attention_map(block, x, kept) if hasattr(getattr(block, "attn", None), "qkv") else None
        y = run(block, x, kept, rope, layer)
        x = torch.where(kept[..., None], y, x)
        ran.kept.append(kept)
        ran.states.append(x)
    normed = vit.norm(x)
    ran.features = torch.stack([normed[row, here[row]] for row in range(len(x))])
    return ran


def run(block: Any, x: Tensor, kept: Tensor, rope: Any, layer: int) -> Tensor:
    mask = kept[:, None, None].expand(-1, 1, x.shape[1], -1)
    if rope is None:
        return block(x, attn_mask=mask)
    return block(x, rope=rope[layer] if rope.ndim == 4 else rope, attn_mask=mask)


def attention_map(block: Any, x: Tensor, kept: Tensor) -> Tensor:
    """(b n n) of an ordinary attention, mean over heads, from its weights; of ``kept`` tokens only."""
    attn, (b, n, _) = block.attn, x.shape
    if attn.qkv is None or not hasattr(attn, "q_norm"):
        return x.new_zeros(b, n, n)
    normed = block.norm1(x) if hasattr(block, "norm1") else x
    q, k, _ = attn.qkv(normed).view(b, n, 3, attn.num_heads, -1).unbind(2)
    total = x.new_zeros(b, n, n)
    for head in range(attn.num_heads):
        logits = attn.q_norm(q[:, :, head]) @ attn.k_norm(k[:, :, head]).mT / q.shape[-1] ** 0.5
        total += logits.masked_fill(~kept[:, None], -float("inf")).softmax(-1)
    return (total / attn.num_heads) * kept[:, :, None] * kept[:, None]


def norm_score(block: Any, x: Tensor, seen: Tensor | None) -> Tensor:
    """The longest vectors in front of the attention."""
    name = type(block).__name__
    if name in ("ResPostBlock", "EvaBlockPostNorm"):
        return x.norm(dim=-1)
    if name == "ParallelThingsBlock":
        return block.attns[0].norm(x).norm(dim=-1)
    return (block.in_norm if hasattr(block, "in_norm") else block.norm1)(x).norm(dim=-1)
