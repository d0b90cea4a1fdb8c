"""Attention on packed ragged sequences: every segment looks at its own keys, and nothing is padded.

One function, several backends, the first that can serve is taken: plain SDPA where all segments are alike,
xformers or torch's ``varlen_attn`` on CUDA, one SDPA call per segment everywhere else. There is no Triton
version, and no measurement was made of whether one would win over the kernels of xformers and torch.
"""

from __future__ import annotations

from torch import Tensor

from tokenops.kernels.attention import choice
from tokenops.kernels.attention.choice import Choice
from tokenops.kernels.attention.request import Request
from tokenops.kernels.attention.segments import Segments
from tokenops.registry import register
from tokenops.shapes import Float

__all__ = ["Choice", "Segments", "attention", "explain"]


@register("kernel")
def attention(
    q: Float[Tensor, "t h d"],
    k: Float[Tensor, "s g d"],
    v: Float[Tensor, "s g e"],
    segments: Segments,
    *,
    causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "t h e"]:
    r"""Attention of packed segments: every query looks at the keys of its own segment.

    .. math:: y_i = \sum_{j \in \text{segment}(i)} \mathrm{softmax}_j(c\, q_i^\top k_j)\, v_j

    Query head a reads key head ``a // (h / g)``. With ``causal``, query i of a segment with m queries and n
    keys sees its keys 0 … i + n - m: the last query sees all of them. **A query that sees no key gets 0**
    and no gradient. What other segments hold, NaN included, never reaches a segment's outputs or gradients.

    Args:
        q: queries of all segments, one after the other (t h d); any strides.
        k: keys (s g d), h a multiple of g.
        v: values (s g e).
        segments: query and key lengths of every segment.
        causal: hide later keys.
        scale: of the logits, positive in float32; ``d ** -0.5`` by default.
        backend: ``"sdpa"``, ``"xformers"``, ``"varlen"``, ``"loop"`` or ``"math"``; by default the first that
            serves, see :func:`explain`.

    Returns:
        (t h e), in the dtype of q.

    Raises:
        TokenOpsError: other types; shapes, dtypes, devices or segments that do not fit; a scale of 0, below
            it or beyond float32; an unknown backend, or one that cannot serve, with the reason.

    >>> q, k = torch.zeros(3, 2, 4), torch.zeros(5, 1, 4)
    >>> v = torch.arange(5.0).view(5, 1, 1)
    >>> attention(q, k, v, Segments.of([1, 2], keys=[2, 3]), causal=True)[:, 0, 0]
    tensor([0.5000, 2.5000, 3.0000])
    """
    request = Request.of(q, k, v, segments, causal, scale)
    chosen, seen = choice.pick(request, backend), request.segments
    if seen is segments and len(seen):
        return chosen.run(q, k, v, segments, causal, scale)
    # blind queries, and keys that nobody looks at, are left out before any backend runs
    rows, columns = (index.to(q.device) for index in segments.seen_rows(causal))
    if len(seen):
        out = chosen.run(q[rows], k[columns], v[columns], seen, causal, scale)
    else:
        # no rows, but the three inputs get a gradient of zeros as they do beside a segment that sees
        nothing = q[rows].sum() + k[columns].sum() + v[columns].sum()
        out = nothing.expand(0, q.shape[1], v.shape[2])
    return q.new_zeros(len(q), *out.shape[1:]).index_copy(0, rows, out)


def explain(
    q: Float[Tensor, "t h d"],
    k: Float[Tensor, "s g d"],
    v: Float[Tensor, "s g e"],
    segments: Segments,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Choice:
    """Which backend :func:`attention` would take for these arguments, and why not each of the others.

    Nothing is computed.

    Raises:
        TokenOpsError: what :func:`attention` refuses whatever the backend.

    >>> q = torch.zeros(5, 1, 8)
    >>> print(explain(q, q, q, Segments.of([3, 2])))
    attention runs on loop
      sdpa      no: the segments have different lengths
      xformers  no: runs on CUDA, not on cpu
      varlen    no: runs on CUDA, not on cpu
      loop      yes
      math      yes
    """
    return choice.choose(Request.of(q, k, v, segments, causal, scale))
