"""The members side by side, their memory, and those that other packages have too; see ``relaxations.py``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from interleaved import Mask, interleave, peak_bytes, sets_for, spread
from relaxation_reference import perturbed_one_hot
from rich.progress import track
from torch import Tensor

from tokenops.selectors import relaxations

ROWS = 8
SAMPLES = 100
THRESHOLD = ("sigmoid", "laplace", "gaussian", "capped_simplex", "entmax15")
DIRECTIONS = {"forward": False, "both": True}


def normal(n: int) -> Tensor:
    """Fresh scores."""
    return torch.randn(ROWS, n)


def members(n: int) -> dict[str, Mask]:
    """Every member at 10 %, and softmax for scale."""
    k = int(0.1 * n)
    return {
        "softmax": partial(torch.softmax, dim=-1),
        **{f"{name}_topk": partial(relaxations.soft_topk, k=k, method=name) for name in THRESHOLD},
        "gumbel_topk": partial(relaxations.gumbel_topk, k=k),
        "logistic_topk": partial(relaxations.logistic_topk, k=k),
        "systematic_topk": partial(relaxations.systematic_topk, k=k),
    }


def side_by_side(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of all members in one interleaving, and the memory of a forward and backward pass."""
    rows = []
    for n in track(options.sizes, "members"):
        contenders = members(n)
        times = {
            direction: interleave(contenders, partial(normal, n), sets_for(n), options.repeats, backward)
            for direction, backward in DIRECTIONS.items()
        }
        for name, mask in contenders.items():
            row: dict[str, Any] = {"member": name, "n": n}
            row["ms"] = {direction: spread(found[name]) for direction, found in times.items()}
            row["floats_per_score"] = round(peak_bytes(mask, normal(n)) / (4 * ROWS * n), 2)
            rows.append(row)
    return rows


def perturbed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Perturbed Top-K by counting against one-hot vectors, forward and backward, k = 30 % and 10 %."""
    rows = []
    for n, share in ((256, 0.3), (2048, 0.1)):
        if n > max(options.sizes):
            continue
        k = int(share * n)
        contenders: dict[str, Mask] = {"ours": partial(relaxations.perturbed_topk, k=k, samples=SAMPLES)}
        one_hot_mb = ROWS * SAMPLES * k * n * 4 / 1e6
        if one_hot_mb < 500:
            contenders["one-hot"] = partial(perturbed_one_hot, k=k, samples=SAMPLES, sigma=1.0)
        times = interleave(contenders, partial(normal, n), 1, max(2, options.repeats // 5), True)
        row: dict[str, Any] = {"n": n, "k": k, "samples": SAMPLES, "one_hot_vectors_MB": round(one_hot_mb, 1)}
        row["ms"] = {name: spread(t) for name, t in times.items()}
        row["MB"] = {name: round(peak_bytes(mask, normal(n)) / 1e6, 2) for name, mask in contenders.items()}
        rows.append(row)
    return rows


def against_entmax(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The capped simplex against ``budget_bisect``, sparsemax and entmax-1.5 against their namesakes.

    ``budget_bisect`` takes 50 steps unless told; its documentation says that 24 suffice in float32.
    """
    import entmax

    rows = []
    for n in track(options.sizes, "against entmax"):
        k = int(0.1 * n)
        capped = partial(relaxations.capped_simplex_topk, k=k)
        pairs: dict[str, tuple[Mask, Mask]] = {
            "budget_bisect": (capped, partial(entmax.budget_bisect, budget=k)),
            "budget_bisect(n_iter=24)": (capped, partial(entmax.budget_bisect, budget=k, n_iter=24)),
            "sparsemax": (relaxations.sparsemax, partial(entmax.sparsemax, dim=-1)),
            "entmax15": (relaxations.entmax15, partial(entmax.entmax15, dim=-1)),
        }
        for theirs, (mask, other) in pairs.items():
            for direction, backward in DIRECTIONS.items():
                contenders = {"theirs": other, "ours": mask}
                times = interleave(contenders, partial(normal, n), sets_for(n), options.repeats, backward)
                row: dict[str, Any] = {"theirs": theirs, "n": n, "direction": direction}
                row["ms"] = {name: spread(t) for name, t in times.items()}
                row["ratio"] = spread(times["theirs"] / times["ours"])
                rows.append(row)
    return rows
