"""How do I calibrate ALVTS, which routes tokens around layers, without any answers?

    python examples/calibrate_alvts.py --out factors --samples 32

Fits low-rank factors to the attention of each layer; ``tokenops calibrate`` does it from a file of prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenops
from tokenops import pocket, recipes
from tokenops.integrations import low_rank_factors
from tokenops.training import calibrate


def prompts(processor: Any, count: int) -> Iterator[Any]:
    """Processor outputs, four prompts each. real: your own images with questions."""
    for number in range(count):
        scenes = pocket.scenes(4, "train", seed=number)
        texts = [scene.questions()[number % len(scene.questions())].prompt for scene in scenes]
        yield processor(images=[s.image for s in scenes], text=texts, padding=True, return_tensors="pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32, help="batches of four prompts")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    model, processor = pocket.load()  # real: from_pretrained, and --rank 256
    factors = low_rank_factors(model, options.rank)
    data = prompts(processor, options.samples)
    print(calibrate(model, factors, data, samples=options.samples, epochs=options.epochs, loss="listwise"))
    tokenops.save(recipes.alvts(factors, keep=0.2), options.out)
    with tokenops.attach(model, tokenops.load(options.out)) as handle:
        print(pocket.evaluate(model, processor, pocket.scenes(10, "heldout", seed=5)))
        print("visual tokens in each layer:", handle.tokens_per_layer)


if __name__ == "__main__":
    main()
