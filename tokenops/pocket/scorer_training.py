"""Training VisionSelector's scorer on the pocket VLM with the library's own training code."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.pocket.scenes import make_scene
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import soft_topk, systematic_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training.schedules import Schedule, linear, log_uniform

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

CURRICULA: dict[str, Schedule] = {
    "paper": linear(0.1, 2.0),
    "late": linear(0.0, 2.0, begin=0.5),
    "none": linear(0.0, 0.0),
}
RELAXATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "soft": soft_topk,
    "straight-through": functools.partial(soft_topk, hard=True),
    "systematic": systematic_topk,
}
BUDGETS = (0.05, 0.5)
"""Between these the budget of a training step is drawn, log-uniformly; the mean is 0.2."""


class Questions(Dataset[dict[str, Any]]):
    """One question about each of ``n`` scenes of the training split, as records for the Collator.

    >>> sorted(Questions(4, seed=0)[3])
    ['answer', 'images', 'prompt']
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = make_scene("train", (self.seed, index))
        asked = scene.questions()
        question = asked[index % len(asked)]
        return {"images": scene.image, "prompt": question.prompt, "answer": question.answer}


def train_scorer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    *,
    steps: int = 800,
    batch: int = 32,
    lr: float = 3e-3,
    keep: float | tuple[float, float] = BUDGETS,
    gate: str = "attention",
    curriculum: str = "none",
    relaxation: str = "systematic",
    seed: int = 0,
    progress: bool = True,
) -> Pipeline:
    """Train a fresh scorer inside the frozen ``model``; training digits only.

    Args:
        model: the pocket VLM; afterwards in evaluation mode, otherwise unchanged.
        processor: its processor.
        steps: optimizer steps of ``batch`` questions each.
        batch: questions per step.
        lr: peak learning rate of a cosine schedule with 3 % warm-up.
        keep: budget in training, or the two between which it is drawn for every step. The pipeline comes back
            with a budget of 0.2 in the latter case.
        gate: ``"attention"`` or ``"multiply"``, see :class:`tokenops.Prune`.
        curriculum: a name in :data:`CURRICULA`.
        relaxation: a name in :data:`RELAXATIONS`.
        seed: of weights, scenes and order.
        progress: show a progress bar.

    Returns:
        The trained pipeline in evaluation mode.

    Raises:
        TokenOpsError: an unknown curriculum or relaxation.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    from tokenops.training import Collator, Curriculum, Trainable

    if curriculum not in CURRICULA or relaxation not in RELAXATIONS:
        names = f"a curriculum among {', '.join(CURRICULA)} and a relaxation among {', '.join(RELAXATIONS)}"
        raise TokenOpsError("train_scorer", names, (curriculum, relaxation))
    set_seed(seed)
    scorer = LearnedScorer(model.lm_head.in_features)
    own, drawn = (0.2, log_uniform(*keep, seed=seed)) if isinstance(keep, tuple) else (keep, None)
    pipeline = visionselector(scorer, keep=own, relax=RELAXATIONS[relaxation], gate=gate)
    trainable = Trainable(model, pipeline, curriculum=CURRICULA[curriculum], keep=drawn)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                learning_rate=lr,
                lr_scheduler_type="cosine",
                warmup_steps=max(1, round(0.03 * steps)),
                weight_decay=0.0,
                logging_steps=25,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                dataloader_num_workers=1,
                disable_tqdm=not progress,
                seed=seed,
                use_cpu=model.device.type == "cpu",
            )
            Trainer(
                model=trainable,
                args=arguments,
                train_dataset=Questions(steps * batch, seed),
                data_collator=Collator(processor),
                callbacks=[Curriculum(trainable)],
            ).train()
    finally:
        trainable.remove()
    model.eval()
    return pipeline.eval()
