"""The learned scorer in closed form against all queries times all keys, as the paper writes it.

    python benchmarks/scorer_cost.py --out benchmarks/results/scorer_cost.json

    plain:   s_i = 1/N Σ_j (W_q x_i + b_q)ᵀ(W_k x_j + b_k) / √h      an (N N) matrix
    closed:  the mean over j moved inside, no matrix and no queries  LearnedScorer

One image of N tokens of width D = 3,584 (that of Qwen2.5-VL-7B), h = D/2, float32. Backward gives the
gradients of all four parameters; the features are those of a frozen model and get none. Both run once per
round, in turn, on fresh features; processor seconds, one thread. Errors are against the plain form in
float64, over its largest value; a Top-K is the same if it holds the same tokens.

The closed form must read both weights once and the features twice, for their mean is known only after all of
them, and computes next to nothing. ``read``, the third in turn, is a plain sum of as many numbers: about what
memory alone takes on the same machine, and about the most that any form of the scorer could gain.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from interleaved import held_bytes, in_turn, machine, save, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tokenops.kernels.topk import hard_topk
from tokenops.selectors.scorers import LearnedScorer

TOKENS, WIDTH, BAR_AT, BAR = (1296, 6828), 3584, 1296, 90.0
KEEPS = (0.1, 0.2, 0.3)
Score = Callable[[Tensor], Tensor]


def plain_of(scorer: LearnedScorer) -> Score:
    """The scorer by its formula: the mean over keys of every query's products."""

    def plain(x: Tensor) -> Tensor:
        q, k = scorer.q_proj(x), scorer.k_proj(x)
        return (q @ k.transpose(1, 2) / scorer.hidden**0.5).mean(-1)

    return plain


def trained(width: int) -> LearnedScorer:
    """With weights and biases of the size of trained ones: scores of about 1."""
    scorer = LearnedScorer(width)
    for proj in (scorer.q_proj, scorer.k_proj):
        nn.init.normal_(proj.weight, std=width**-0.5)
        nn.init.normal_(proj.bias, std=0.1)
    return scorer


def features(n: int, width: int) -> Tensor:
    """(1 n d) with a mean of their own, as projected features have."""
    return torch.randn(1, n, width) + 0.5 * torch.randn(1, 1, width)


def gradients(score: Score, scorer: LearnedScorer, x: Tensor) -> list[Tensor]:
    """Of the parameters, for weights that differ from token to token."""
    weight = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)
    return list(torch.autograd.grad((score(x) * weight).sum(), list(scorer.parameters())))


def clock(call: Callable[[], Any]) -> float:
    """Processor seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def times(scorer: LearnedScorer, n: int, rounds: int, backward: bool) -> dict[str, Any]:
    """Seconds of both forms in turn, on the same features within a round, and the ratio."""
    forms: dict[str, Score] = {"plain": plain_of(scorer), "closed": scorer}
    fresh = [features(n, scorer.dim) for _ in range(rounds + 1)]
    numbers = torch.ones(2 * scorer.dim * (scorer.hidden + n))

    def timed(score: Score) -> Callable[[], float]:
        given = iter(fresh)

        def call() -> float:
            x = next(given)
            with torch.set_grad_enabled(backward):
                return clock((lambda: gradients(score, scorer, x)) if backward else (lambda: score(x)))

        return call

    calls = {name: timed(score) for name, score in forms.items()}
    if not backward:
        calls["read"] = lambda: clock(numbers.sum)
    took = in_turn(calls, rounds)
    ratios = {"ratio": spread(took["plain"] / took["closed"])}
    if not backward:
        ratios["over_read"] = spread(took["closed"] / took["read"])
    return {name: spread(t) for name, t in took.items()} | ratios


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference over the largest value."""
    pairs = list(zip(got, expected, strict=True))
    return float(max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for _, b in pairs))


def agreement(scorer: LearnedScorer, n: int) -> dict[str, Any]:
    """Errors of both forms against float64, and tokens that one Top-K has and the other has not."""
    x, forms = features(n, scorer.dim), {"plain": plain_of(scorer), "closed": scorer}
    single = {name: (score(x).detach(), gradients(score, scorer, x)) for name, score in forms.items()}
    scorer.double()
    wide = plain_of(scorer)
    truth, slope = wide(x.double()).detach(), gradients(wide, scorer, x.double())
    scorer.float()
    found: dict[str, Any] = {}
    for name, (scores, own) in single.items():
        found[f"{name}_score_error"] = error([scores], [truth])
        found[f"{name}_gradient_error"] = max(error([a], [b]) for a, b in zip(own, slope, strict=True))
    found["topk_apart"] = {}
    for keep in KEEPS:
        k = max(1, int(keep * n))
        chosen = [hard_topk(scores, k) for scores in (single["plain"][0], single["closed"][0], truth)]
        plain, closed, true = chosen
        found["topk_apart"][str(keep)] = {
            "closed_plain": int((closed & ~plain).sum()),
            "closed_float64": int((closed & ~true).sum()),
        }
    return found


def measure(tokens: tuple[int, ...], width: int, rounds: int) -> dict[str, Any]:
    """One row per number of tokens and direction."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    scorer, rows, agree = trained(width), [], []
    for n in tokens:
        for what, backward in (("forward", False), ("forward + backward", True)):
            row: dict[str, Any] = {"n": n, "what": what, **times(scorer, n, rounds, backward)}
            x = features(n, width)
            for name, score in (("plain", plain_of(scorer)), ("closed", scorer)):
                with torch.set_grad_enabled(backward):
                    run = (
                        functools.partial(gradients, score, scorer, x)
                        if backward
                        else functools.partial(score, x)
                    )
                    row[f"{name}_MB"] = round(held_bytes(run) / 1e6, 3)
            rows.append(row | ({"bar": BAR, "met": row["ratio"][1] >= BAR} if n == BAR_AT else {}))
        agree.append({"n": n, **agreement(scorer, n)})
    settings = {
        "width": width,
        "hidden": scorer.hidden,
        "dtype": "float32",
        "rounds": rounds,
        **machine(),
        "took_s": round(time.perf_counter() - started, 1),
    }
    return {"rows": rows, "agreement": agree, "settings": settings}


def show(result: dict[str, Any]) -> None:
    """Tables on the terminal."""
    table = Table("N", "", "plain s", "closed s", "ratio", "quartiles", "plain MB", "closed MB")
    for r in result["rows"]:
        low, middle, high = r["ratio"]
        cells = f"{r['plain'][1]:.3g}", f"{r['closed'][1]:.3g}", f"{middle:.0f}×", f"[{low:.0f}, {high:.0f}]"
        table.add_row(str(r["n"]), r["what"], *cells, f"{r['plain_MB']:.4g}", f"{r['closed_MB']:.3g}")
    Console().print(table, *result["agreement"], f"took {result['settings']['took_s']} s", sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a few tokens of width 32, one round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    result = measure((24, 40), 32, 1) if options.smoke else measure(TOKENS, WIDTH, options.rounds)
    show(result)
    if options.out:
        save(result, options.out)


if __name__ == "__main__":
    main()
