"""Attention masks of a shortened sequence: 2-D, 4-D, or a dict of them by layer type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.tokenmap import Selection


def query_validity(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """(b l) True for real tokens among the ``length`` newest, from whatever mask the caller gave."""
    if isinstance(mask, Mapping):
        mask = next((m for m in mask.values() if m is not None), None)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise TokenOpsError("attach", "a 2-D or 4-D attention mask, or a dict of them", type(mask).__name__)
    if mask.shape[-1] < length or mask.shape[0] not in (1, batch):
        raise TokenOpsError("attach", f"an attention mask over at least {length} tokens", tuple(mask.shape))
    if mask.ndim == 2:
        return mask[:, -length:].to(device=device, dtype=torch.bool).expand(batch, length)
    if mask.shape[2] != length:
        raise TokenOpsError("attach", f"a 4-D attention mask with {length} queries", tuple(mask.shape))
    # a real token sees itself, padding does not
    own = visible(mask)[..., -length:].diagonal(dim1=2, dim2=3)
    return own.any(1).to(device).expand(batch, length)


def visible(mask: Tensor) -> Tensor:
    """True where a boolean or additive mask lets a key be seen."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def key_validity(mask: Any, source: Tensor, seen: int) -> Tensor:
    """(b stored) True for cached entries that are real and that the caller's 2-D mask shows."""
    valid = source >= 0
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= seen:
        shown = mask.to(device=source.device, dtype=torch.bool).expand(source.shape[0], -1)
        valid = valid & shown.gather(1, source.clamp(min=0))
    return valid


def misread(mask: Any, source: Tensor, seen: int) -> bool:
    """Whether the caller's mask, counted from the right, hides or shows the wrong stored entries."""
    shown = torch.ones_like(source, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        shown = shown & mask[:, -source.shape[1] :].to(device=source.device, dtype=torch.bool)
    return not torch.equal(key_validity(mask, source, seen), shown)


def reduce_mask(mask: Any, chosen: Selection, source: Tensor, seen: int, dropped: int) -> Any:
    """The caller's mask for the kept queries over the stored and the kept new keys.

    Args:
        mask: None, (b, seen + l), (b, h, l, seen + l) or a dict of the latter two and None.
        chosen: the kept of the l new tokens.
        source: (b stored) from the cache.
        seen: tokens the cache has seen.
        dropped: how many of them it does not store.

    A 2-D mask comes back in seen coordinates, so that a causal mask built from cache sizes lines up.
    """
    if isinstance(mask, Mapping):
        return {name: reduce_4d(m, chosen, source, seen) for name, m in mask.items()}
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return reduce_4d(mask, chosen, source, seen)
    past = key_validity(mask, source, seen)
    lead = past.new_ones(past.shape[0], dropped)
    return torch.cat([lead, past, chosen.valid], dim=1).long()


def reduce_4d(mask: Tensor | None, chosen: Selection, source: Tensor, seen: int) -> Tensor:
    """A 4-D mask, or plain causality, for the kept queries over the stored and the kept new keys."""
    b, k = chosen.index.shape
    columns = torch.cat([source, torch.where(chosen.valid, chosen.index + seen, -1)], dim=1)
    if mask is None:  # plain causality
        queries = torch.where(chosen.valid, chosen.index, -1) + seen
        out = (columns[:, None, None, :] <= queries[:, None, :, None]) & (columns >= 0)[:, None, None, :]
        hidden: Any = False
    else:
        mask = mask.to(source.device).expand(b, -1, -1, -1)
        mask = mask.take_along_dim(chosen.index[:, None, :, None], dim=2)
        out = mask.take_along_dim(columns.clamp(min=0)[:, None, None, :], dim=3)
        hidden = False if out.dtype == torch.bool else torch.finfo(out.dtype).min
        out = out.masked_fill((columns < 0)[:, None, None, :], hidden)
    # a filler query sees itself too, so that no softmax runs over nothing
    own = torch.zeros(k, columns.shape[1], dtype=torch.bool, device=out.device)
    own[:, columns.shape[1] - k :] = torch.eye(k, dtype=torch.bool, device=out.device)
    filler = own & ~chosen.valid[:, None, :, None]
    return out.masked_fill(filler, True if out.dtype == torch.bool else 0.0)


_FLOOR, _FLOOR_HALF = 1e-20, 1e-6
"""Least m whose logarithm is taken where m learns, and the one for float16 with its small range."""


def gated_mask(mask: Any, gate: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    r"""Additive causal mask with :math:`\log m_j` on key j: attention weight scaled by m before normalising.

    At m = 1 nothing changes, at m = 0 the key is gone. A gate that takes a gradient is read as at least
    1e-20, with the slope it would have: a token at 0 learns what it would add. In float16 it is 1e-6, which a
    logit of 14 above the others undoes, and the slope needs a scaled loss. ``mask`` as the caller gave it,
    ``gate`` and ``valid`` (b l); no cached past.
    """
    if isinstance(mask, Mapping):
        return {name: _gated(m, gate, valid, dtype) for name, m in mask.items()}
    return _gated(mask if isinstance(mask, Tensor) and mask.ndim == 4 else None, gate, valid, dtype)


def _gated(mask: Tensor | None, gate: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    length = gate.shape[1]
    lowest = torch.finfo(dtype).min
    if mask is None:
        seen = torch.ones(length, length, dtype=torch.bool, device=gate.device).tril()
        seen = seen[None, None] & valid[:, None, None, :]
    else:
        seen = visible(mask)
    # padding sees itself only, so that no softmax runs over nothing
    seen = seen | (~valid[:, None, :, None] & torch.eye(length, dtype=torch.bool, device=gate.device))
    if gate.requires_grad:
        gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
        floor = _FLOOR_HALF if dtype == torch.float16 else _FLOOR
        gate = gate + (floor - gate).clamp(min=0).detach()
    open_ = gate > 0
    bias = torch.where(open_, torch.where(open_, gate, 1.0).log(), lowest).clamp(min=lowest).to(dtype)
    base = bias[:, None, None, :].expand(-1, seen.shape[1], length, length)
    if mask is not None and mask.dtype != torch.bool:
        base = base + mask.where(visible(mask), 0.0).to(dtype)
    return torch.where(seen, base, lowest)


def for_backend(mask: Any, implementation: str | None, dtype: torch.dtype) -> Any:
    """Boolean 4-D masks as additive ones where the attention adds its mask."""
    if isinstance(mask, Mapping):
        return {name: for_backend(m, implementation, dtype) for name, m in mask.items()}
    if implementation == "eager" and isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask
