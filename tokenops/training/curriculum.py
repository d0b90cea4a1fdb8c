"""The Trainer callback that tells a :class:`Trainable` how far training has come."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tokenops.errors import TokenOpsError
from tokenops.training.trainable import Trainable


class Curriculum(TrainerCallback):
    """Sets ``progress`` from the Trainer's step count and adds the pipeline's losses to the logs.

    Progress depends on the step alone, so a resumed run continues exactly where it stopped.

    Raises:
        TokenOpsError: the callback is given something else than the Trainable it serves.

    >>> from tokenops import pocket
    >>> from tokenops.recipes import visionselector
    >>> from tokenops.selectors.relaxations import soft_topk
    >>> from tokenops.selectors.scorers import LearnedScorer
    >>> model, _ = pocket.load()
    >>> pipeline = visionselector(LearnedScorer(128), keep=0.2, relax=soft_topk)
    >>> trainable = Trainable(model, pipeline)
    >>> arguments, state = TrainingArguments(report_to="none"), TrainerState(global_step=25, max_steps=100)
    >>> Curriculum(trainable).on_step_begin(arguments, state, TrainerControl())
    >>> trainable.progress
    0.25
    >>> logs = {"loss": 0.5}
    >>> Curriculum(trainable).on_log(arguments, state, TrainerControl(), logs)
    >>> trainable.remove()
    """

    def __init__(self, trainable: Trainable) -> None:
        if not isinstance(trainable, Trainable):
            raise TokenOpsError("Curriculum", "a Trainable", type(trainable).__name__)
        self.trainable = trainable

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Progress before the first step is 0, before the last almost 1."""
        self.trainable.progress = state.global_step / max(1, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the values of the last training batch to the record."""
        if logs is None or "loss" not in logs:
            return
        extra = {name: round(float(value), 6) for name, value in self.trainable.metrics.items()}
        logs.update(extra)
        if state.log_history:
            state.log_history[-1].update(extra)
