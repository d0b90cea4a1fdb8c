"""How do I prune before the language model and route inside it?

    python examples/hybrid.py

``a | b`` joins pipelines at different places. All lines below cost the same: 14 tokens in the mean layer.
"""

from __future__ import annotations

import argparse

import tokenops
from tokenops import Pipeline, pocket
from tokenops.pocket.routing import alvts

TOKENS = 14


def methods() -> dict[str, Pipeline]:
    """real: tokenops.load(FOLDER) of what train_selector.py and calibrate_alvts.py wrote."""
    return {
        "selector alone": pocket.visionselector(TOKENS),
        "route alone": alvts(TOKENS),
        # counts, not ratios: a ratio of the route is of what the selector passes on
        "both": pocket.visionselector(2 * TOKENS) | alvts(TOKENS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    options = parser.parse_args()
    model, processor = pocket.load()  # real: from_pretrained
    scenes = pocket.scenes(options.scenes, "heldout", seed=5)
    for name, pipeline in methods().items():
        with tokenops.attach(model, pipeline) as handle:
            report = pocket.evaluate(model, processor, scenes)
            print(f"{name:15} tokens {handle.tokens_per_layer}  {report}")


if __name__ == "__main__":
    main()
