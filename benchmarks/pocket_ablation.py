r"""Which way of training the scorer gives the best *hard* selection: gates × relaxations × budgets.

    python benchmarks/pocket_ablation.py --steps 200 --scenes 40 \
        --out benchmarks/results/pocket_ablation.json

Every scorer is trained once, from the same seed on the same training scenes, and judged on the same held-out
questions with tokens really dropped. "straight-through" uses the hard mask forward and the soft mask
backward, "systematic" a hard mask drawn at random whose mean is the soft one. A curriculum weighs the loss
that closes the gap between soft and hard; hard masks have none. "drawn" budgets change from step to step.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

import tokenops
from tokenops import pocket
from tokenops.pocket.evaluate import encode
from tokenops.pocket.scorer_training import BUDGETS, train_scorer
from tokenops.training import soft_hard_gap

KEEPS = (0.3, 0.2, 0.1)
GATES = ("attention", "multiply")
FIXED = 0.2
RECIPES = (  # relaxation, curriculum, budget in training
    ("soft", "paper", FIXED),
    ("soft", "late", FIXED),
    ("soft", "late", BUDGETS),
    ("straight-through", "none", FIXED),
    ("systematic", "none", FIXED),
    ("systematic", "none", BUDGETS),
)


def gap_of(model: Any, processor: Any, pipeline: tokenops.Pipeline) -> float:
    """Mean |soft - hard| of the mask of training at keep 0.2, on training scenes."""
    some = pocket.scenes(32, "train", seed=99)
    inputs = encode(processor, some, [s.questions()[0] for s in some])
    pipeline.stages["after_projector"].selector.keep = FIXED
    model.train()
    with torch.no_grad(), tokenops.attach(model, pipeline) as handle:
        model(**inputs, use_cache=False)
        decision = handle.decision
    model.eval()
    pipeline.eval()
    return float(soft_hard_gap(decision.chosen.gate, decision.chosen.mask, decision.mask))


def judge(model: Any, processor: Any, pipeline: tokenops.Pipeline, scenes: list[Any]) -> dict[str, float]:
    """Held-out accuracy over all questions per budget."""
    out = {}
    for keep in KEEPS:
        pipeline.stages["after_projector"].selector.keep = keep
        with tokenops.attach(model, pipeline):
            report = pocket.evaluate(model, processor, scenes)
        out[str(keep)] = round(sum(report.right.values()) / report.total, 4)
    return out


def main() -> None:
    """Train, judge, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scenes = pocket.scenes(options.scenes, "heldout", seed=21)
    rows = []
    for gate, (relaxation, curriculum, keep) in product(GATES, RECIPES):
        start = time.perf_counter()
        model, processor = pocket.load()
        pipeline = train_scorer(
            model,
            processor,
            steps=options.steps,
            batch=options.batch,
            keep=keep,
            gate=gate,
            curriculum=curriculum,
            relaxation=relaxation,
            progress=False,
        )
        row: dict[str, Any] = {
            "gate": gate,
            "relaxation": relaxation,
            "curriculum": curriculum,
            "budget": keep,
        }
        row |= {"soft_hard_gap": round(gap_of(model, processor, pipeline), 4)}
        row |= {"accuracy": judge(model, processor, pipeline, scenes)}
        rows.append(row)
        print(f"{row} in {time.perf_counter() - start:.0f} s", flush=True)
    settings = {"steps": options.steps, "batch": options.batch, "scenes": options.scenes, "keeps": KEEPS}
    settings |= {"questions": sum(len(scene.questions()) for scene in scenes), "seeds": 1}
    settings |= {"torch": torch.__version__, "machine": f"{platform.machine()} CPU"}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
