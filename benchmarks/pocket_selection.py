"""Held-out accuracy of the selectors on the pocket VLM, with paired bootstrap intervals.

    python benchmarks/pocket_selection.py --scenes 300 --out benchmarks/results/pocket_selection.json

Every method answers the same questions. Differences are resampled over scenes, so that questions about one
image stay together; intervals are the 2.5 % and 97.5 % quantiles of 10,000 resamples.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokenops
from tokenops import Pipeline, Prune, pocket, recipes
from tokenops.pocket.evaluate import encode, kept_logits
from tokenops.pocket.references import best, digit_scores, oracle_scores
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, feature_norm


def smallest_norm(x: torch.Tensor) -> torch.Tensor:
    """The opposite of the usual ranking."""
    return -feature_norm(x)


def untrained_scorer() -> LearnedScorer:
    """VisionSelector's scorer with random weights of the usual size."""
    torch.manual_seed(0)
    scorer = LearnedScorer(128)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return scorer


BUDGETS = (0.3, 0.2, 0.1, 0.05)
METHODS: dict[str, Callable[[float], Pipeline]] = {
    "visionselector": pocket.visionselector,
    "random": lambda keep: recipes.random(keep, seed=None),
    "uniform": recipes.uniform,
    "feature norm": recipes.feature_norm,
    "cls attention": recipes.cls_attention,
    "smallest norm": lambda keep: Pipeline(after_projector=Prune(TopK(smallest_norm, keep))),
    "untrained scorer": lambda keep: recipes.visionselector(untrained_scorer(), keep),
}
BASELINES = tuple(list(METHODS)[1:])
# not methods: they read the true places of the digits
REFERENCES = {"digit patches": digit_scores, "digit centres": oracle_scores}


def batches(scenes: list[pocket.Scene], size: int = 64) -> Iterator[list[tuple[int, pocket.Question]]]:
    """(scene number, question) pairs, ``size`` at a time."""
    pairs = [(i, question) for i, scene in enumerate(scenes) for question in scene.questions()]
    yield from (pairs[start : start + size] for start in range(0, len(pairs), size))


def answers(model: Any, processor: Any, scenes: list[pocket.Scene], keep: torch.Tensor | None) -> np.ndarray:
    """True where a question is answered rightly, in the order of :func:`batches`."""
    right = []
    with torch.no_grad():
        for pairs in batches(scenes):
            rows, asked = [i for i, _ in pairs], [q for _, q in pairs]
            inputs = encode(processor, [scenes[i] for i in rows], asked)
            if keep is None:
                logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            else:
                logits = kept_logits(model, inputs, keep[rows])
            words = processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
            right += [word == q.answer for word, q in zip(words, asked, strict=True)]
    return np.array(right)


def interval(difference: np.ndarray, scene: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean paired difference, resampling whole scenes."""
    sums = np.bincount(scene, weights=difference)
    counts = np.bincount(scene)
    picks = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def collect(scenes: list[pocket.Scene]) -> dict[str, dict[float, np.ndarray]]:
    """Right answers per method and budget; budget 1.0 of "full" is the unattached model."""
    model, processor = pocket.load()
    out: dict[str, dict[float, np.ndarray]] = {"full": {1.0: answers(model, processor, scenes, None)}}
    for method, keep in track([(m, k) for m in METHODS for k in BUDGETS], "methods"):
        torch.manual_seed(0)
        with tokenops.attach(model, METHODS[method](keep)):
            out.setdefault(method, {})[keep] = answers(model, processor, scenes, None)
    for name, keep in track([(r, k) for r in REFERENCES for k in BUDGETS], "references"):
        k = tokenops.budget.keep_count(keep, 144)
        chosen = best(REFERENCES[name](scenes), k)
        out.setdefault(name, {})[keep] = answers(model, processor, scenes, chosen)
    return out


def summarise(right: dict[str, dict[float, np.ndarray]], scenes: list[pocket.Scene]) -> dict[str, Any]:
    """Accuracy per method and budget, and the two comparisons with their intervals."""
    owner = np.array([i for pairs in batches(scenes) for i, _ in pairs])
    kind = np.array([q.kind for pairs in batches(scenes) for _, q in pairs])
    full = right["full"][1.0].astype(float)
    rows = []
    for method, by_keep in right.items():
        for keep, hits in by_keep.items():
            loss = hits.astype(float) - full
            row: dict[str, Any] = {"method": method, "keep": keep, "accuracy": round(float(hits.mean()), 4)}
            row |= {str(k): round(float(hits[kind == k].mean()), 4) for k in np.unique(kind)}
            row |= {"minus_full": round(float(loss.mean()), 4), "interval": interval(loss, owner)}
            rows.append(row)
    gains = {}
    for keep in BUDGETS:
        rival = max(BASELINES, key=lambda m: right[m][keep].mean())
        gain = right["visionselector"][keep].astype(float) - right[rival][keep]
        gains[str(keep)] = {"rival": rival, "gain": float(gain.mean()), "interval": interval(gain, owner)}
    return {"rows": rows, "visionselector_minus_best_baseline": gains, "questions": len(full)}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"held-out accuracy, {result['questions']} questions")
    for column in ("method", "keep", "accuracy", "count", "what", "where", "minus full [95 %]"):
        table.add_column(column)
    for row in result["rows"]:
        low, high = row["interval"]
        cells = [f"{row[c]:.3f}" for c in ("accuracy", "count", "what", "where")]
        table.add_row(
            row["method"], f"{row['keep']:.2f}", *cells, f"{row['minus_full']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    Console(width=110).print(table)
    for keep, gain in result["visionselector_minus_best_baseline"].items():
        low, high = gain["interval"]
        print(
            f"keep {keep}: VisionSelector - {gain['rival']} = {gain['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )


def main() -> None:
    """Evaluate and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scenes = pocket.scenes(options.scenes, "heldout", seed=options.seed)
    result = summarise(collect(scenes), scenes)
    show(result)
    settings = {
        "scenes": options.scenes,
        "seed": options.seed,
        "split": "heldout",
        "torch": torch.__version__,
    }
    result["settings"] = settings | {
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
