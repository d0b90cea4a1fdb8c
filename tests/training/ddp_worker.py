"""What each of two processes does: it must be importable by name, so it has its own file."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from integrations import tiny
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from training import kit

SHARES = ((0, 1), (2, 3))


def backbone_mark(t: Any) -> torch.Tensor:
    return t.model.model.language_model.norm.weight


def step(wrapped: Any, t: Any, rows: list[kit.Row], total: int, world: int) -> dict[str, torch.Tensor]:
    """As the Trainer: label tokens of all processes, times the processes, because DDP averages."""
    t.zero_grad()
    (wrapped(**tiny.batch(rows), num_items_in_batch=total)["loss"] * world).backward()
    return kit.gradients(t)


def gradients(rank: int, world: int, folder: str) -> None:
    """Gradients of every family and gate, and what DDP synchronised, to one file per rank."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=90),
    )
    found: dict[str, Any] = {}
    for family in kit.FAMILIES:
        for gate in ("attention", "multiply"):
            t = kit.trainable(family, gate=gate, seed=1 + rank)
            mark = backbone_mark(t)
            with torch.no_grad():
                mark.add_(rank)
            wrapped = DistributedDataParallel(t)
            found[f"{family}/{gate}/backbone"] = mark.clone()
            found[f"{family}/{gate}/scorer"] = kit.weights(t)
            with torch.no_grad():
                mark.sub_(rank)
            rows = kit.rows(family)
            total = kit.label_tokens(tiny.batch(rows))
            mine = [rows[i] for i in SHARES[rank]]
            found[f"{family}/{gate}"] = step(wrapped, t, mine, total, world)
            # one process with images, one without; then the first again
            mine = [rows[0] if rank == 0 else rows[2]]
            total = kit.label_tokens(rows[0]) + kit.label_tokens(rows[2])
            found[f"{family}/{gate}/text"] = step(wrapped, t, mine, total, world)
            found[f"{family}/{gate}/again"] = step(wrapped, t, mine, total, world)
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def train(rank: int, world: int, folder: str, port: int) -> None:
    """The real Trainer in one of ``world`` processes."""
    if world > 1:
        torch.set_num_threads(1)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    t = kit.trainable("llava")
    trainer = kit.trainer(
        t, Path(folder), kit.many("llava", 4), max_steps=2, per_device_train_batch_size=2 // world,
        gradient_accumulation_steps=2, optim="sgd", learning_rate=0.5, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    trainer.train()
    torch.save(kit.weights(t), f"{folder}/trained{world}_{rank}.pt")
    if world > 1:
        distributed.destroy_process_group()
