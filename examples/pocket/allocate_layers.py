"""Stage 5 of the pocket VLM: how many tokens each layer gets, for ALVTS alone and behind VisionSelector.

    python examples/pocket/allocate_layers.py --out tokenops/pocket/factors/layers.json

What --out holds for other methods and counts stays.
Scenes of the training split only. For another model: ``layer_budgets`` with any processor outputs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tokenops import Pipeline, pocket, recipes
from tokenops.pocket.calibration_data import calibration_data
from tokenops.pocket.routing import alvts
from tokenops.routers.schedules import Schedule
from tokenops.training import layer_budgets

N = 144


def main() -> None:
    """Share every budget out over the layers, save the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[72, 43, 29, 16, 14, 7])
    parser.add_argument("--methods", nargs="+", choices=["alvts", "hybrid"], default=["alvts", "hybrid"])
    parser.add_argument("--items", type=int, default=12, help="batches of 64 questions")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = pocket.load()
    data = list(calibration_data(processor, options.items, batch=64, seed=options.seed))
    factors = alvts().stages["layers"].scorer
    route = partial(recipes.alvts, factors)
    stored = json.loads(options.out.read_text()) if options.out.exists() else {}
    found: dict[str, dict[str, list[int]]] = {"alvts": {}, "hybrid": {}} | stored

    def share_out(method: str, recipe: Callable[[Schedule], Pipeline], k: int, n: int) -> None:
        schedule = layer_budgets(model, recipe, data, k / n, bins=n)
        counts = [round(keep * n) for keep in schedule.keeps if keep is not None]
        found[method][str(k)] = counts
        print(f"{method} {k}: {counts}", flush=True)

    for k in options.counts:
        if "alvts" in options.methods:
            share_out("alvts", route, k, N)
        if "hybrid" in options.methods and 2 * k < N:
            before = pocket.visionselector(2 * k)
            share_out("hybrid", lambda schedule, before=before: before | route(schedule), k, 2 * k)
    options.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
