"""Stage 3 of the pocket VLM: train VisionSelector's scorer with the library's own training code.

    python examples/pocket/train_scorer.py --out tokenops/pocket/scorer

The backbone is frozen; digits of the training split only. The recipe is in
``tokenops/pocket/scorer_training.py``; for another model, give the same Trainer a ``Trainable`` around
``AutoModelForImageTextToText.from_pretrained(...)`` and a dataset of ``{"images", "prompt", "answer"}``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tokenops
from tokenops import pocket
from tokenops.pocket.scorer_training import BUDGETS, CURRICULA, RELAXATIONS, train_scorer


def main() -> None:
    """Train, save and report held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--keep", type=float, nargs="+", default=BUDGETS, help="one, or two to draw it between in every step"
    )
    parser.add_argument("--gate", choices=["attention", "multiply"], default="attention")
    parser.add_argument("--curriculum", choices=list(CURRICULA), default="none")
    parser.add_argument("--relaxation", choices=list(RELAXATIONS), default="systematic")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    out: Path = options.pop("out")
    low, *high = options.pop("keep")
    options["keep"] = (low, *high) if high else low
    model, processor = pocket.load()
    pipeline = train_scorer(model, processor, **options)
    tokenops.save(pipeline, out)
    held_out = pocket.scenes(100, "heldout", seed=7)
    print(f"full: {pocket.evaluate(model, processor, held_out)}")
    for keep in (0.3, 0.2, 0.1):
        pipeline.stages["after_projector"].selector.keep = keep
        with tokenops.attach(model, pipeline):
            print(f"keep {keep}: {pocket.evaluate(model, processor, held_out)}")


if __name__ == "__main__":
    main()
