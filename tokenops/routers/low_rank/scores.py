"""Attention scores: what the visual and the text rows of a layer look at, from a map that is never whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tokenops.errors import TokenOpsError
from tokenops.shapes import Bool, Float
from tokenops.tokenmap.checks import check_field

NUMBERS = 1 << 18  # numbers of the attention map that exist at a time; 1 MiB stays in the cache of a CPU
NUMBERS_CUDA = 1 << 26  # fewer launches
ROWS = 16  # query rows at least


def attention_scores(
    q: Float[Tensor, "b h l e"],
    k: Float[Tensor, "b g l e"],
    *,
    visual: Bool[Tensor, "b l"],
    mask: Bool[Tensor, "b l"] | None = None,
    queries: Bool[Tensor, "b l"] | None = None,
    causal: bool = True,
    scale: float | None = None,
    chunk: int | None = None,
    log: bool = False,
) -> Float[Tensor, "b l"]:
    r"""How much visual and text rows attend to each visual token of a layer.

    .. math:: A_h = \mathrm{softmax}(c\, q_h k_h^\top), \qquad
        S_i = \frac1{H|V|} \sum_{h, j \in V} A_{h,j,i} \cdot \frac1{H|T|} \sum_{h, j \in T} A_{h,j,i}

    for the visual tokens i. V are the visual rows, T the text rows. The softmax runs over all tokens, or over
    those up to the row itself if causal. With the layer's own queries and keys (RoPE applied) this is the
    teacher's score; with those of :class:`LowRankAttention` its approximation.

    * Padding may hold anything, anywhere: it is no row and no key, and scores 0.
    * *A missing factor is uniform attention.* Where no text row may look at a token (no text in the row; all
      of it before the image under causality; none among ``queries``), its text factor is 1/L, L the number of
      tokens in the row, so that the other factor still ranks it. The same holds for visual rows.
    * A row without visual tokens scores 0 everywhere.

    Args:
        q: queries (b h l e).
        k: keys (b g l e); g divides h, and query head i reads key head i // (h / g).
        visual: True at visual tokens; all other real tokens are text.
        mask: False at padding.
        queries: rows to average over, all by default. Rows before the first and after the last of them in the
            batch cost nothing.
        causal: token j looks at tokens 0 … j only.
        scale: the factor c, e^-1/2 by default.
        chunk: query rows at a time; by default so many that their piece of the map, b·h·chunk·l numbers, has
            2^18 (2^26 on CUDA), but at least 16. The result depends on it by rounding only.
        log: return log S, −∞ where the score is 0 by definition. The product of two small float32 factors can
            underflow and lose its rank, their logarithms' sum does not.

    Shapes: -> (b l), float32 or wider. Differentiable; backward recomputes the map chunk by chunk.

    Raises:
        TokenOpsError: a tensor of another rank, size, dtype or device; g does not divide h; a bad chunk.

    >>> q, k = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    >>> attention_scores(q, k, visual=torch.tensor([[True, True, False]]), causal=False)
    tensor([[0.1111, 0.1111, 0.0000]])

    Reference: ALVTS (arXiv:2606.14277) §3. The rule for a missing factor is ours.
    """
    _check(q, k, visual, mask, queries, chunk)
    real = torch.ones_like(visual) if mask is None else mask
    rows = real if queries is None else real & queries
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    counted = torch.stack([rows & visual, rows & ~visual], 1).to(wide)
    weight = counted / counted.sum(-1, keepdim=True).clamp(min=1)
    first, last = (0, q.shape[2]) if queries is None else _span(rows)
    chunk = _default_chunk(q) if chunk is None else chunk
    factor = q.shape[3] ** -0.5 if scale is None else scale
    k = k.to(wide)
    if mask is not None:
        q, k = (t.masked_fill(~mask[:, None, :, None], 0.0) for t in (q, k))
    with torch.autocast(q.device.type, enabled=False):
        total = torch.zeros_like(weight)
        for start in range(first, last, chunk):
            part = slice(start, min(start + chunk, last))
            total = total + _rows(q, k, weight, mask, part, causal, factor)
    looked_at = weight.flip(-1).cummax(-1).values.flip(-1) if causal else weight.sum(-1, keepdim=True)
    uniform = 1 / real.sum(-1).clamp(min=1).to(wide)
    factors = torch.where(looked_at > 0, total, uniform[:, None, None])
    if log:
        logs = factors.clamp(min=torch.finfo(wide).tiny).log().sum(1)
        return logs.masked_fill(~(visual & real), -float("inf"))
    return (factors[:, 0] * factors[:, 1]).masked_fill(~(visual & real), 0.0)


def _rows(
    q: Tensor, k: Tensor, weight: Tensor, mask: Tensor | None, part: slice, causal: bool, scale: float
) -> Tensor:
    """What the query rows ``part`` add to the two means (b 2 l); backward computes their map again."""
    seen = part.stop if causal else q.shape[2]
    keys = None if mask is None else mask[:, None, None, :seen]
    given = q[:, :, part], k[:, :, :seen], weight[:, :, part], keys, causal, scale
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        got = checkpoint(_piece, *given, use_reentrant=False, preserve_rng_state=False)
    else:
        got = _piece(*given)
    return F.pad(got, (0, q.shape[2] - seen))  # pyright: ignore[reportArgumentType]


def _piece(q: Tensor, k: Tensor, weight: Tensor, keys: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Weighted column sums (b 2 s) of the map of c rows (b h c e), the last c of the s keys (b g s e)."""
    b, h, c, e = q.shape
    grouped = (q.to(k.dtype) * scale).reshape(b, k.shape[1], h // k.shape[1] * c, e)
    logits = (grouped @ k.transpose(-1, -2)).view(b, h, c, k.shape[2])
    # finite, so that a row that sees nothing stays finite too; its weight is 0
    lowest = torch.finfo(logits.dtype).min
    if causal:
        later = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
        logits[..., -c:].masked_fill_(later, lowest)
    if keys is not None:
        logits = logits.masked_fill(~keys, lowest)
    attention = logits.softmax(-1).flatten(1, 2)
    return weight.repeat(1, 1, h) @ attention / h


def _default_chunk(q: Tensor) -> int:
    numbers = NUMBERS_CUDA if q.is_cuda else NUMBERS
    return max(ROWS, numbers // max(1, q.shape[0] * q.shape[1] * q.shape[2]))


def _span(rows: Tensor) -> tuple[int, int]:
    """First and last + 1 of the rows that any sample needs."""
    needed = rows.any(0).nonzero().flatten().tolist()
    return (needed[0], needed[-1] + 1) if needed else (0, 0)


def _check(
    q: Tensor, k: Tensor, visual: Tensor, mask: Tensor | None, queries: Tensor | None, chunk: int | None
) -> None:
    who = "attention_scores"
    check_field(who, "q", q, None, (None, None, None, None))
    check_field(who, "k", k, None, (q.shape[0], None, q.shape[2], q.shape[3]), q.device)
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise TokenOpsError(who, f"key heads that divide {q.shape[1]} query heads", k.shape[1])
    for name, value in (("visual", visual), ("mask", mask), ("queries", queries)):
        if value is not None:
            check_field(who, name, value, torch.bool, (q.shape[0], q.shape[2]), q.device)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise TokenOpsError(who, "chunk as an int >= 1 or None", repr(chunk))
