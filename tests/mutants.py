"""Small mistakes in the relaxations. Each must turn the fast tests red: see selectors/test_mutants.py."""

from __future__ import annotations

from typing import NamedTuple

ENGINE = "selectors/relaxations"


class Mutant(NamedTuple):
    """A mistake: ``right``, found once in a file of the package, becomes ``wrong``."""

    name: str
    file: str
    right: str
    wrong: str


MUTANTS = (
    Mutant("gradient sign", f"{ENGINE}/threshold.py", "torch.sub(g, mean, out", "torch.sub(mean, g, out"),
    Mutant("gradient sign, traced", f"{ENGINE}/threshold.py", "v * (g - mean)", "v * (mean - g)"),
    Mutant(
        "gradient not centred",
        f"{ENGINE}/threshold.py",
        "torch.sub(g, mean, out",
        "torch.sub(g, 0 * mean, out",
    ),
    Mutant("gradient of tau, sign", f"{ENGINE}/threshold.py", "dtau = -(dx", "dtau = (dx"),
    Mutant("gradient of k", f"{ENGINE}/threshold.py", "else mean.to(", "else (2 * mean).to("),
    Mutant(
        "gradient from padding",
        f"{ENGINE}/threshold.py",
        "torch.where(v > 0, g, 0.0), total.clamp",
        "g, total.clamp",
    ),
    Mutant(
        "rows coupled", f"{ENGINE}/threshold.py", "total = v.sum(-1, True)", "total = v.sum(-1, True).mean()"
    ),
    Mutant("missing mask", f"{ENGINE}/cut.py", "else (x != -math.inf) & mask", "else x != -math.inf"),
    Mutant("unseen -inf", f"{ENGINE}/threshold.py", " and float(x.amin()) > -math.inf", ""),
    Mutant("nothing kept, all kept", f"{ENGINE}/threshold.py", "k <= 0, (k >= n)", "k < 0, (k > n)"),
    Mutant("one iteration", f"{ENGINE}/solver.py", "curve.points + wide", "1"),
    Mutant("short bracket", f"{ENGINE}/solver.py", "40 if wide else 24", "3"),
    Mutant("no share for the fraction", f"{ENGINE}/balance.py", "lack + at.part * curve", "lack + 0 * curve"),
    Mutant("infinity counted", f"{ENGINE}/balance.py", "at.dropped == math.inf", "at.dropped == -math.inf"),
    Mutant("one kept too many", f"{ENGINE}/cut.py", "rank < whole", "rank <= whole"),
    Mutant(
        "no spread",
        f"{ENGINE}/solver.py",
        "return torch.addcmul(p, v, rest.to(p.dtype), out=out)",
        "return p",
    ),
    Mutant("threshold before spread", f"{ENGINE}/solver.py", "out=out), t + rest", "out=out), t"),
    Mutant(
        "quick stops early",
        f"{ENGINE}/easy.py",
        "torch.finfo(dtype).eps) ** 0.5",
        "torch.finfo(dtype).eps) ** 0.1",
    ),
    Mutant(
        "quick trusts any sum",
        f"{ENGINE}/easy.py",
        "if not doubt * torch.finfo(p.dtype).eps < first_order",
        "if False",
    ),
    Mutant("rounded sum of ones", f"{ENGINE}/easy.py", "plain=doubt > 32", "plain=False"),
    Mutant("batched gradient looked at", f"{ENGINE}/threshold.py", "look=_has_memory(grads[0])", "look=True"),
    Mutant("unseen -inf, quick", f"{ENGINE}/easy.py", " and (seen or float(x.amin()) > -math.inf)", ""),
    Mutant("quick leaves [0, 1]", f"{ENGINE}/easy.py", "p.clamp_(0, 1), center", "p, center"),
    Mutant(
        "nothing moves, no rest",
        f"{ENGINE}/threshold.py",
        "torch.where(slope == 0, math.inf, slope)",
        "slope",
    ),
    Mutant("hazard 0", f"{ENGINE}/balance.py", "clamp(torch.finfo(t.dtype).eps, 1)", "clamp(0, 1)"),
    Mutant(
        "padding taken for scores",
        f"{ENGINE}/threshold.py",
        "look and math.isfinite(float(mean.detach().sum()))",
        "look",
    ),
    Mutant(
        "half-precision solve",
        f"{ENGINE}/apply.py",
        "torch.float64 if scores.dtype == torch.float64 else torch.float32",
        "scores.dtype",
    ),
    Mutant("ratio to no token", f"{ENGINE}/apply.py", ".floor().clamp(min=1)", ".floor()"),
    Mutant(
        "endless k", f"{ENGINE}/apply.py", "batch, torch.float64).clamp(-1, n + 1)", "batch, torch.float64)"
    ),
    Mutant(
        "segments without mask", f"{ENGINE}/segments.py", "else mask & (segments >= 0)", "else segments >= 0"
    ),
    Mutant("log-balance sign", f"{ENGINE}/family.py", "have.log() - lack.log()", "lack.log() - have.log()"),
    Mutant("Laplace density", f"{ENGINE}/laplace.py", "torch.minimum(p, 1 - p)", "p * (1 - p)"),
    Mutant("entmax density", f"{ENGINE}/entmax.py", ".pow(2 - alpha)", ".pow(1)"),
    Mutant(
        "simplex density",
        f"{ENGINE}/capped_simplex.py",
        "value=-1).ceil()",
        "value=-1).ceil() + (p == 0)",
    ),
    Mutant(">= for >", "kernels/topk/__init__.py", "key > last", "key >= last"),
    Mutant("ties by count", "kernels/topk/__init__.py", "tied.cumsum(-1) <= k", "tied.cumsum(-1) < k"),
)
