"""Stage 4 of the pocket VLM: calibrate ALVTS' low-rank factors, with the library's own calibration.

    python examples/pocket/calibrate_alvts.py --out tokenops/pocket/factors
    python examples/pocket/calibrate_alvts.py --softmax head --rank 32 --out tokenops/pocket/factors/head

Scenes of the training split only. For another model: ``low_rank_factors(model, rank)`` and ``calibrate`` with
any iterable of processor outputs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tokenops
from tokenops import pocket, recipes
from tokenops.integrations import low_rank_factors
from tokenops.pocket.calibration_data import calibration_data
from tokenops.training import calibrate


def main() -> None:
    """Calibrate, save and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--softmax", choices=["joint", "head"], default="joint")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--loss", choices=["mse", "listwise"], default="listwise")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, processor = pocket.load()
    factors = low_rank_factors(model, options.rank, softmax=options.softmax)
    data = calibration_data(processor, options.samples, seed=options.seed)
    report = calibrate(
        model, factors, data, samples=options.samples, epochs=options.epochs, loss=options.loss
    )
    print(report)
    tokenops.save(recipes.alvts(factors), options.out)
    if options.softmax == "joint":
        mass = [[round(share, 6) for share in layer.mass] for layer in report.layers]
        (options.out / "mass.json").write_text(json.dumps(mass) + "\n")
    with tokenops.attach(model, recipes.alvts(factors)):
        print(pocket.evaluate(model, processor, pocket.scenes(60, "train", seed=13)))


if __name__ == "__main__":
    main()
