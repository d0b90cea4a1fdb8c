"""How do I try a scorer of my own?

    python examples/own_scorer.py

Write it, hold it to the contract of scorers, attach it. The tutorial "Write your own component" explains.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import tokenops
from tokenops import Pipeline, Prune, pocket, recipes
from tokenops.selectors import TopK
from tokenops.selectors.checks import check_tokens
from tokenops.testing import check_scorer


def unlike_the_rest(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Distance from the mean of the image: (b n d) -> (b n). Arguments behind the * are signals it takes."""
    check_tokens("unlike_the_rest", x, mask)
    real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
    x = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~real[..., None], 0)
    mean = x.sum(1, keepdim=True) / real.sum(1).clamp(min=1)[:, None, None]
    return (x - mean).norm(dim=-1).masked_fill(~real, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--scenes", type=int, default=20)
    options = parser.parse_args()
    check_scorer(unlike_the_rest)
    print("the contract holds")
    model, processor = pocket.load()  # real: from_pretrained
    scenes = pocket.scenes(options.scenes, "heldout", seed=5)
    mine = Pipeline(after_projector=Prune(TopK(unlike_the_rest, options.keep)))
    for name, pipeline in {"mine": mine, "random": recipes.random(options.keep)}.items():
        with tokenops.attach(model, pipeline):
            print(f"{name:8} {pocket.evaluate(model, processor, scenes)}")


if __name__ == "__main__":
    main()
