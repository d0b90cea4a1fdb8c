"""The composite loss without the library: one row at a time, soft masks and gates written out."""

from __future__ import annotations

from typing import Any

import torch
from integrations import reference as ref
from torch import Tensor, nn
from training.kit import Row


def scores_of(scorer: Any, x: Tensor) -> Tensor:
    """(n) mean over j of q_i . k_j / sqrt(h), by the N×N matrix."""
    q, k = (
        nn.functional.linear(x, *scorer.q_proj.parameters()),
        nn.functional.linear(x, *scorer.k_proj.parameters()),
    )
    return (q @ k.T).mean(1) / q.shape[1] ** 0.5


class _Soft(torch.autograd.Function):
    """sigmoid(s + t) with sum k, by bisection; gradient v g - v (v·g) / sum v."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, k: int) -> Tensor:
        low, high = -s.max() - 30, -s.min() + 30
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if torch.sigmoid(s + t).sum() < k else (low, t)
        m = torch.sigmoid(s + t)
        ctx.save_for_backward(m)
        return m

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        v = m * (1 - m)
        return v * g[0] - v * (v @ g[0]) / v.sum(), None


def soft_and_hard(scores: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    k = max(1, int(keep * len(scores) + 1e-6))
    hard = torch.zeros(len(scores), dtype=torch.bool)
    hard[scores.detach().topk(k).indices] = True
    if k == len(scores):
        return torch.ones_like(scores), hard
    return _Soft.apply(scores, k), hard


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    log_p = logits[0].log_softmax(-1)
    picked = [-log_p[i - 1, label] for i, label in enumerate(labels[0].tolist()) if i and label != -100]
    return torch.stack(picked).sum()


def parts(model: Any, scorer: Any, row: Row, keep: float, gate: str) -> tuple[Tensor, list[Tensor]]:
    """Summed cross-entropy of one unpadded row on an unattached model, and the BCE of each of its images."""
    inputs = {k: v for k, v in row.items() if k != "labels"}
    given = ref.language_arguments(model, inputs)
    embeds = given["inputs_embeds"].detach()
    length = embeds.shape[1]
    soft_all, bces = torch.ones(length, dtype=embeds.dtype), []
    for _, at in ref.units(row["input_ids"]):
        soft, hard = soft_and_hard(scores_of(scorer, embeds[0, at]), keep)
        soft_all = soft_all.index_put((torch.tensor(at),), soft)
        bces.append(-torch.where(hard, soft, 1 - soft).log().mean())
    positions = given.get("position_ids")
    positions = torch.arange(length)[None] if positions is None else positions
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(length, length, dtype=embeds.dtype)
    if gate == "multiply":
        embeds = embeds * soft_all[None, :, None]
    else:
        bias = bias + soft_all.log()
    mask = torch.where(allowed, bias, torch.finfo(embeds.dtype).min)[None, None]
    out = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    )
    return cross_entropy_sum(model.lm_head(out.last_hidden_state), row["labels"]), bces


def composite(
    model: Any, scorer: Any, rows: list[Row], keep: float, gate: str, weight: float
) -> tuple[Tensor, Tensor]:
    """(task loss, weight · BCE) of a batch: means over label tokens; an image shares its sample's tokens."""
    counts = [int((row["labels"][:, 1:] != -100).sum()) for row in rows]
    task, auxiliary = torch.zeros(()), torch.zeros(())
    for row, count in zip(rows, counts, strict=True):
        summed, bces = parts(model, scorer, row, keep, gate)
        task = task + summed / sum(counts)
        if bces:
            auxiliary = auxiliary + torch.stack(bces).mean() * count / sum(counts)
    return task, weight * auxiliary
