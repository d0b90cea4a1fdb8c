"""Which method keeps most of my answers at the same budget?

    python examples/compare_methods.py --keep 0.1 --scenes 20

Runs on the pocket model that ships. For yours, change the lines marked "real".
"""

from __future__ import annotations

import argparse

import tokenops
from tokenops import Pipeline, pocket, recipes


def methods(keep: float) -> dict[str, Pipeline]:
    """At one budget before the language model; divprune, uniform and random need nothing of a model."""
    return {
        "all tokens": recipes.random(1.0),
        "random": recipes.random(keep),
        "uniform": recipes.uniform(keep),
        "cls attention": recipes.cls_attention(keep),  # CLIP towers
        "divprune": recipes.divprune(keep),
        "visionzip": recipes.visionzip(keep),  # cls=False without a CLS token
        "visionselector": pocket.visionselector(keep),  # real: tokenops.load(FOLDER), see train_selector.py
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--scenes", type=int, default=20)
    options = parser.parse_args()
    model, processor = pocket.load()  # real: from_pretrained
    scenes = pocket.scenes(options.scenes, "heldout", seed=5)
    for name, pipeline in methods(options.keep).items():
        with tokenops.attach(model, pipeline) as handle:
            report = pocket.evaluate(model, processor, scenes)  # real: your own benchmark
            tokens = sum(handle.tokens_per_layer) / len(handle.tokens_per_layer)
        print(f"{name:15} {tokens:5.0f} tokens a layer  {report}")


if __name__ == "__main__":
    main()
