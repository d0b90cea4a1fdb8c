"""How much faster is a vision transformer of timm with fewer patches?

    python examples/timm_routing.py --size 224

Random weights, which change no time. For yours, change the line marked "real".
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import timm
import torch

import tokenops
from tokenops import Pipeline
from tokenops.routers import Route, from_layer
from tokenops.selectors.scorers import cls_attention, feature_norm

METHODS = {
    "skip every block": lambda keep: Route(feature_norm, keep),
    "leave at block 3": lambda keep: Route(cls_attention, from_layer(3, keep), fate="exit"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    vit = timm.create_model("vit_small_patch16_224", img_size=options.size).eval()  # real: pretrained=True
    images = torch.randn(2, 3, options.size, options.size)

    runs: list[tuple[str, float, Route | None]] = [("unrouted", 1.0, None)]
    runs += [(name, keep, make(keep)) for name, make in METHODS.items() for keep in (0.7, 0.5, 0.3)]
    seconds: dict[int, list[float]] = {number: [] for number in range(len(runs))}
    patches = [float(vit.patch_embed.num_patches)] * len(runs)
    with torch.inference_mode():
        for _ in range(options.rounds + 1):  # everyone in turn; the first round warms up
            for number, (_, _, route) in enumerate(runs):
                attached = nullcontext() if route is None else tokenops.attach(vit, Pipeline(layers=route))
                with attached as handle:
                    start = time.process_time()
                    vit(images)
                    seconds[number].append(time.process_time() - start)
                    if handle is not None:
                        patches[number] = sum(handle.tokens_per_layer) / len(handle.tokens_per_layer)

    print(f"{'':18}{'keep':>6}{'patches per block':>19}{'ms':>8}{'times faster':>14}")
    for number, (name, keep, _) in enumerate(runs):
        ratios = [a / b for a, b in zip(seconds[0][1:], seconds[number][1:], strict=True)]
        middle, took = sorted(ratios)[len(ratios) // 2], sorted(seconds[number][1:])[len(ratios) // 2]
        print(f"{name:18}{keep:6.1f}{patches[number]:19.1f}{1000 * took:8.0f}{middle:14.2f}")


if __name__ == "__main__":
    main()
