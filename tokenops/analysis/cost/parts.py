"""The operations of each part of a model: matrix products, attention and the rows that are moved.

Norms, activations, residuals and rotary tables are taken as fused into their neighbours: no FLOPs, no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenops.analysis.cost.architecture import Decoder, Projector, Tower
from tokenops.analysis.cost.images import Image
from tokenops.analysis.cost.work import Op, Segments, attention, matmul


def tower_ops(tower: Tower, images: Sequence[Image], batch: int, size: int) -> list[Op]:
    """Patch embedding and all blocks of the tower, also those behind the one whose output is read."""
    patches = batch * sum(image.patches for image in images)
    if not patches:
        return []
    full = _joined([image.full for image in images], batch)
    windows = _joined([image.windows for image in images], batch)
    ops = [matmul(patches, tower.patch, tower.width, size, bias=not tower.cls and not tower.window)]
    for block in range(tower.layers):
        whole = tower.full is None or block in tower.full
        ops += _block(tower, full if whole else windows, size)
    return ops + (_pooling(tower, full, size) if tower.pooled else [])


def _joined(segments: Sequence[Segments], batch: int) -> Segments:
    return [(length, times * batch) for some in segments for length, times in some]


def _block(tower: Tower, segments: Segments, size: int) -> list[Op]:
    tokens = sum(length * times for length, times in segments)
    width, head = tower.width, tower.width // tower.heads
    into = [matmul(tokens, width, tower.ffn, size, bias=True)] * (tower.matrices - 1)
    return [
        matmul(tokens, width, 3 * width, size, bias=True),
        attention(tower.heads, tower.heads, head, segments, size, pairs="full"),
        matmul(tokens, width, width, size, bias=True),
        *into,
        matmul(tokens, tower.ffn, width, size, bias=True),
    ]


def _pooling(tower: Tower, views: Segments, size: int) -> list[Op]:
    """One query for every view: keys and values, the query, its row of the map, and what follows it."""
    tokens, rows = sum(n * times for n, times in views), sum(times for _, times in views)
    width = tower.width
    return [
        matmul(tokens, width, 2 * width, size, bias=True),
        *[matmul(rows, width, width, size, bias=True)] * 2,
        Op(4 * tokens * width, 2 * tokens * width * size),
        matmul(rows, width, tower.ffn, size, bias=True),
        matmul(rows, tower.ffn, width, size, bias=True),
    ]


def projector_ops(projector: Projector, images: Sequence[Image], batch: int, size: int) -> list[Op]:
    """Both matrices, on all rows that the tower made."""
    rows = batch * sum(image.projected for image in images)
    if not rows:
        return []
    one = matmul(rows, projector.inputs, projector.hidden, size, bias=projector.bias)
    return [one, matmul(rows, projector.hidden, projector.outputs, size, bias=projector.bias)]


def projections(decoder: Decoder, tokens: int, size: int) -> list[Op]:
    """Queries, keys, values and output of a layer's attention, without the attention."""
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    bias = decoder.qkv_bias
    return [
        matmul(tokens, decoder.width, queries, size, bias=bias),
        *[matmul(tokens, decoder.width, keys, size, bias=bias)] * 2,
        matmul(tokens, queries, decoder.width, size, bias=decoder.out_bias),
    ]


def layer_ops(decoder: Decoder, length: int, batch: int, size: int, pairs: str) -> list[Op]:
    """One decoder layer on ``batch`` rows of ``length`` tokens, without a past."""
    tokens, bias = batch * length, decoder.ffn_bias
    sizes = (decoder.heads, decoder.kv_heads, decoder.head_dim)
    return [
        *projections(decoder, tokens, size),
        attention(*sizes, [(length, batch)], size, pairs=pairs),
        *[matmul(tokens, decoder.width, decoder.ffn, size, bias=bias)] * 2,
        matmul(tokens, decoder.ffn, decoder.width, size, bias=bias),
    ]


def head_ops(decoder: Decoder, batch: int, size: int) -> list[Op]:
    """Logits of each row's last token. A head tied to the embeddings is read and multiplied all the same."""
    return [matmul(batch, decoder.width, decoder.vocabulary, size)]
