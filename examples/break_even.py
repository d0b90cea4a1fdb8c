"""From how many visual tokens does a method help on my model and device?

    python examples/break_even.py --device rtx4090

Counts from a config; no weights and no GPU are needed. ``tokenops bench`` measures.
"""

from __future__ import annotations

import argparse

from tokenops import recipes
from tokenops.analysis import DEVICES, break_even, cost
from tokenops.analysis.measure.architectures import config_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=[*DEVICES, "cpu"], default="h200")
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--keep", type=float, default=0.2)
    options = parser.parse_args()
    config = config_of("llava-1.5-7b")  # real: AutoConfig.from_pretrained(ID)
    methods = {
        "uniform": recipes.uniform(options.keep),
        "divprune": recipes.divprune(options.keep),
        "visionzip": recipes.visionzip(options.keep),
        "fastv": recipes.fastv(options.keep, layer=2),
    }
    print(f"{options.tokens} visual tokens on {options.device}, {options.keep:.0%} kept")
    print(f"{'':10}{'at best':>9}{'in FLOPs':>10}{'kernels':>9}{'helps from':>12}")
    for name, pipeline in methods.items():
        made = cost(config, options.tokens, pipeline, device=options.device)
        least = break_even(config, pipeline, device=options.device)
        limit = made.speedup_limit
        print(f"{name:10}{limit.time:9.2f}{limit.flops:10.2f}{made.launches:9}", end="")
        print(f"{'never' if least is None else least:>12}")


if __name__ == "__main__":
    main()
