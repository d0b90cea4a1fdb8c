"""The training behind ``tokenops train``: the Hugging Face Trainer around a Trainable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from tokenops.cli.outputs import Output
from tokenops.cli.records import Examples, Record
from tokenops.integrations.families import find_parts
from tokenops.pipeline import Pipeline
from tokenops.recipes import visionselector
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training import Collator, Curriculum, Trainable, linear

_SHOWN = ("loss", "task_loss", "soft_hard_bce", "soft_hard_gap", "curriculum", "learning_rate")


def dataset(records: Sequence[Record] | None, processor: Any, count: int, seed: int) -> Any:
    """The records as the Collator wants them; without any, so many questions about training scenes."""
    if records is None:
        from tokenops.pocket.scorer_training import Questions

        return Questions(count, seed)
    return Examples(records, processor)


def trained(
    model: Any, processor: Any, examples: Any, run: dict[str, Any], output: Output, save_every: int
) -> tuple[Pipeline, list[dict[str, float]]]:
    """Train a fresh scorer, or go on from the last checkpoint; the model is as before, whatever happens.

    Returns:
        The pipeline in evaluation mode, and what was logged.
    """
    set_seed(run["seed"])
    scope = run["scope"]
    width = find_parts(model).language_model.get_input_embeddings().embedding_dim
    scorer = LearnedScorer(width, trained_scope=scope)
    pipeline = visionselector(scorer, run["keep"], relax=soft_topk, scope=scope, gate=run["gate"])
    collator = Collator(processor)
    start = min(0.1, run["weight"])
    mode = model.training
    trainable = Trainable(model, pipeline.to(model.device), curriculum=linear(start, run["weight"]))
    last = last_checkpoint(output.unfinished)
    try:
        with output.teller.waiting(f"training {run['steps']} steps", run["steps"]) as step:
            trainer = Trainer(
                model=trainable,
                args=_arguments(run, output.unfinished, save_every, model.device.type),
                train_dataset=examples,
                data_collator=collator,
                callbacks=[Curriculum(trainable), _Told(output, step)],
            )
            # it prints to stdout
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        trainable.remove()
        model.train(mode)
        last_checkpoint(output.unfinished)
    log = [{"step": e["step"]} | {n: e[n] for n in _SHOWN if n in e} for e in trainer.state.log_history]
    return pipeline.eval(), [entry for entry in log if "loss" in entry]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those that an interruption left half-written are removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            # written last
            whole[json.loads((path / "trainer_state.json").read_text())["global_step"]] = path
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return whole[max(whole)] if whole else None


def _arguments(run: dict[str, Any], folder: Path, save_every: int, device: str) -> TrainingArguments:
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=run["steps"],
        per_device_train_batch_size=run["batch"],
        gradient_accumulation_steps=run["accumulate"],
        learning_rate=run["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * run["steps"])),
        weight_decay=0.0,
        logging_steps=max(1, run["steps"] // 50),
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=2,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=run["seed"],
        use_cpu=device == "cpu",
    )
    # one device: a Trainable refuses nn.DataParallel, which the Trainer would choose by itself
    made._n_gpu = min(1, made.n_gpu)
    return made


class _Told(TrainerCallback):
    """A step of the bar, or where there is none, a line for each entry of the log."""

    def __init__(self, output: Output, step: Callable[[], None]) -> None:
        self.console, self.step = output.console, step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.console.print(f"going on after step {state.global_step}")
        for _ in range(state.global_step):
            self.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and not self.console.is_terminal:
            self.console.print(f"step {state.global_step}: loss {float(logs['loss']):.4g}")
