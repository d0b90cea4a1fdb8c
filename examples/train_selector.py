"""How do I train VisionSelector's scorer on my questions?

    python examples/train_selector.py --out scorer --steps 200

The model is frozen; only the scorer learns. ``tokenops train`` does the same with checkpoints to go on from.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import Trainer, TrainingArguments

import tokenops
from tokenops import pocket, recipes
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import LearnedScorer
from tokenops.training import Collator, Curriculum, Trainable, linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    model, processor = pocket.load()  # real: from_pretrained
    scenes = pocket.scenes(options.steps * options.batch, "train", seed=0)
    asked = [(scene, scene.questions()[i % len(scene.questions())]) for i, scene in enumerate(scenes)]
    # real: your own records of this form
    records = [{"images": s.image, "prompt": q.prompt, "answer": q.answer} for s, q in asked]

    scorer = LearnedScorer(model.get_input_embeddings().embedding_dim)
    pipeline = recipes.visionselector(scorer, keep=0.2, relax=soft_topk)
    trainable = Trainable(model, pipeline, curriculum=linear(0.1, 2.0))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=3e-3,  # real: 5e-5
            logging_steps=max(1, options.steps // 8),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        )
        callbacks = [Curriculum(trainable)]
        Trainer(trainable, settings, Collator(processor), records, callbacks=callbacks).train()
    trainable.remove()
    tokenops.save(pipeline.eval(), options.out)
    with tokenops.attach(model.eval(), tokenops.load(options.out)):
        print(pocket.evaluate(model, processor, pocket.scenes(10, "heldout", seed=5)))


if __name__ == "__main__":
    main()
