"""Tiny models with a scorer to train, rows with labels, and the Trainer around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from integrations import tiny
from torch import Tensor

from tokenops import Pipeline
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training import Curriculum, Trainable

FAMILIES = ("llava", "qwen2_5_vl")
WIDTH = tiny.TEXT["hidden_size"]
Row = dict[str, Tensor]


def scorer(seed: int = 1, std: float = 0.12) -> LearnedScorer:
    """A scorer with an opinion, unlike a fresh one."""
    g = torch.Generator().manual_seed(seed)
    made = LearnedScorer(WIDTH)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=g)
    return made


def pipeline(seed: int = 1, keep: float = 0.3, relax: Any = soft_topk, **options: Any) -> Pipeline:
    return visionselector(scorer(seed), keep=keep, relax=relax, **options)


def trainable(
    family: str = "llava",
    *,
    curriculum: Callable[[float], float] | None = None,
    model: Any = None,
    **options: Any,
) -> Trainable:
    model = tiny.MODELS[family]() if model is None else model
    return Trainable(model, pipeline(**options), curriculum=curriculum).train()


def row(family: str, images: list[int], seed: int, answer: int) -> Row:
    """A prompt whose last ``answer`` tokens are labelled."""
    made = tiny.sample(family, images, seed, (3, max(4, answer)))
    if not images:
        made = tiny.sample(family, images, seed, (answer + 3, 0))
    made["labels"] = torch.full_like(made["input_ids"], -100)
    made["labels"][:, -answer:] = made["input_ids"][:, -answer:]
    return made


def rows(family: str) -> list[Row]:
    """Two images, one, none and three, with two to five label tokens."""
    shown = [([0, 1], 2), ([3], 5), ([], 3), ([2, 3, 1], 4)]
    return [row(family, images, seed, answer) for seed, (images, answer) in enumerate(shown, 1)]


def many(family: str, count: int) -> list[Row]:
    return [row(family, [i % 4] * (1 + i % 2), 50 + i, 2 + i % 3) for i in range(count)]


def label_tokens(batch: Row) -> int:
    return int((batch["labels"] != -100).sum())


def gradients(t: Trainable) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in t.named_parameters() if p.grad is not None}


def weights(t: Trainable) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in t.state_dict().items()}


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-4) -> None:
    """Each tensor within ``rtol`` of the norm of the wanted one."""
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.isfinite(got[name]).all(), name
        assert (got[name] - value).norm() <= rtol * value.norm() + 1e-7, name


def arguments(folder: Path, **changes: Any) -> Any:
    from transformers import TrainingArguments

    fixed = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False}
    given = {"logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2, "seed": 3}
    return TrainingArguments(output_dir=str(folder), **fixed | given | changes)


def trainer(
    t: Trainable, folder: Path, data: list[Row], callbacks: tuple[Any, ...] = (), **changes: Any
) -> Any:
    """A real Trainer; ``changes`` go to its TrainingArguments, but for a few that are its own."""
    from transformers import PrinterCallback, Trainer

    own = {n: changes.pop(n) for n in ("eval_dataset", "processing_class", "compute_metrics") if n in changes}
    collate = changes.pop("collate", tiny.batch)
    made = Trainer(
        t, arguments(folder, **changes), data_collator=collate, train_dataset=data,
        callbacks=[Curriculum(t), *callbacks], **own,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made
