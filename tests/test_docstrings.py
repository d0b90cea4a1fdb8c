"""What every public name's docstring says: counted, and listed where something is missing.

``python tests/test_docstrings.py`` prints the count.
"""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "docs" / "_ext")]

import pytest
from public_symbols import Symbol, can_raise, symbols, tensors
from torch import Tensor

from tokenops.selectors.checks import check_tokens
from tokenops.shapes import Float

# These compute something, so they need an equation: components of these kinds, all names of these modules.
MATHEMATICS = {"relaxation", "sampler", "scorer", "selector", "merger", "router", "kernel"}
MATHEMATICAL = (
    "tokenops.budget",
    "tokenops.tokenmap",
    "tokenops.kernels",
    "tokenops.selectors",
    "tokenops.routers",
    "tokenops.training.annealed",
    "tokenops.training.calibration",
    "tokenops.training.losses",
    "tokenops.training.schedules",
    "tokenops.training.sensitivity",
    "tokenops.training.trainable",
    "tokenops.integrations.low_rank",
    "tokenops.analysis.cost.devices",
    "tokenops.analysis.cost.estimate",
    "tokenops.analysis.measure.statistics",
)
# (name, what) -> why it may be missing
EXEMPT: dict[tuple[str, str], str] = {
    ("tokenops.analysis.device_here", "equation"): "a stopwatch",
    ("tokenops.analysis.device_here", "raises"): "the rates it measures are positive",
    ("tokenops.analysis.measure.Spread", "equation"): "median and quartiles, as everywhere",
    ("tokenops.budget.Budget", "equation"): "an attribute; keep_count has the rule",
    ("tokenops.kernels.attention.Choice", "equation"): "a list of reasons",
    ("tokenops.kernels.explain", "equation"): "computes nothing",
    ("tokenops.routers.Units", "equation"): "says what belongs to what",
    ("tokenops.selectors.relaxations.replay", "equation"): "sets the state of a generator",
    ("tokenops.training.Calibration", "equation"): "a report; calibrate has the formulas",
    (
        "tokenops.analysis.Measurement.table",
        "example",
    ): "needs a whole measurement; that of measure prints it",
    ("tokenops.kernels.attention.Segments.seen", "raises"): "its lengths were checked already",
    ("tokenops.list_recipes", "raises"): "the kind it asks for is known",
    ("tokenops.integrations.Handle.trace", "raises"): "makes selections of what was checked in the call",
    ("tokenops.training.Trainable.activation_checkpointing_enable", "example"): "the Trainer calls it",
    ("tokenops.training.Trainable.gradient_checkpointing_enable", "example"): "the Trainer calls it",
}
# examples that need something that is not here; none may be added without a reason
SKIPPED: dict[str, str] = {}

CHECKS = ("summary", "equation", "shapes", "raises", "example", "reference")
# (b n d), (b h·e), (...), (144,)
_SIZE = r"(?:\.\.\.|[a-z]|\d+)"
SHAPE = re.compile(rf"\({_SIZE}(?:[ ·+*]+{_SIZE})*\)|\((?:rows columns|\d+,)\)")
AS_ELSEWHERE = re.compile(r"(?:errors|Raises) as (?:in )?:(?:func|class|meth):`~?([\w.]+)`")


# what a symbol needs


def needs(symbol: Symbol) -> set[str]:
    """The checks that apply."""
    wanted = {"summary", "example"}
    top = symbol.owner is None
    module = getattr(symbol.code, "__module__", "") or ""
    inside = any(module == m or module.startswith(f"{m}.") for m in MATHEMATICAL)
    if top and (symbol.kind in MATHEMATICS or (symbol.kind is None and inside)):
        wanted.add("equation")
    if tensors(symbol):
        wanted.add("shapes")
    if can_raise(symbol):
        wanted.add("raises")
    if symbol.paper:
        wanted.add("reference")
    return wanted


# what it has


def has_summary(symbol: Symbol) -> bool:
    """One line, a sentence, by itself."""
    lines = [*symbol.doc.splitlines(), "", ""]
    return (
        len(lines[0]) > 5
        and len(lines[0]) <= 110
        and not lines[1].strip()
        and lines[0].rstrip("`")[-1] in ".:)"
    )


def has_shapes(symbol: Symbol) -> bool:
    """In the text, or of all tensors in their annotations, or where the text says they are."""
    shown = "Shapes:" in symbol.doc or bool(SHAPE.search(symbol.doc))
    return shown or all("[Tensor, " in a for a in tensors(symbol)) or elsewhere(symbol, "Shapes:")


def has_raises(symbol: Symbol) -> bool:
    """A section that names the error, or a word on whose errors they are."""
    if symbol.owner is not None and symbol.name.endswith(".forward"):
        symbol = next(s for s in symbols() if s.value is symbol.owner)  # one docstring for a module
    section = re.search(r"^Raises:\n((?:[ ]+.*\n?|\n)+)", symbol.doc, re.MULTILINE)
    if section and "TokenOpsError:" in section[1]:
        return True
    return elsewhere(symbol, "TokenOpsError:")


def elsewhere(symbol: Symbol, what: str) -> bool:
    """Whether its text names another docstring for shapes and errors, and that one has ``what``."""
    named = AS_ELSEWHERE.search(symbol.doc)
    name = named[1].rpartition(".")[2] if named else None
    return any(s.name.rpartition(".")[2] == name and what in s.doc for s in symbols())


def examples(symbol: Symbol) -> list[doctest.Example]:
    """The examples of a docstring."""
    return doctest.DocTestParser().get_examples(symbol.doc)


def runs(example: doctest.Example) -> bool:
    """Whether it is not skipped."""
    return not example.options.get(doctest.SKIP, False)


def has_example(symbol: Symbol) -> bool:
    """One of its own that uses it; for a member, also one of its class or of a neighbour."""
    last = symbol.name.rpartition(".")[2]
    if last == "forward":  # calling the module shows it
        symbol = next(s for s in symbols() if s.value is symbol.owner)
    if symbol.owner is None:
        return any(runs(e) for e in examples(symbol))
    family = [s for s in symbols() if s.owner is symbol.owner or s.value is symbol.owner]
    source = "\n".join(e.source for s in family for e in examples(s) if runs(e))
    return any(runs(e) for e in examples(symbol)) or re.search(rf"\.{last}\b", source) is not None


def has_reference(symbol: Symbol) -> bool:
    """The registered paper, with the section."""
    _, found, text = symbol.doc.partition("Reference:")
    return bool(found) and str(symbol.paper) in text and "§" in text


HAS: dict[str, Callable[[Symbol], bool]] = {
    "summary": has_summary,
    "equation": lambda symbol: ".. math::" in symbol.doc,
    "shapes": has_shapes,
    "raises": has_raises,
    "example": has_example,
    "reference": has_reference,
}


def missing(what: str) -> list[str]:
    """Names that need ``what`` and have it not."""
    return [
        s.name for s in symbols() if what in needs(s) and (s.name, what) not in EXEMPT and not HAS[what](s)
    ]


def report() -> str:
    """The count, one line for each check."""
    lines = [f"{len(symbols())} public names, {sum(s.owner is None for s in symbols())} of them not members"]
    for what in CHECKS:
        wanted = [s.name for s in symbols() if what in needs(s)]
        excused = [name for name in wanted if (name, what) in EXEMPT]
        lacking = missing(what)
        has = len(wanted) - len(lacking) - len(excused)
        share = has / max(1, len(wanted) - len(excused))
        lines.append(
            f"{what:10} {has:4} of {len(wanted) - len(excused):4} {share:7.1%}, {len(excused)} exempt"
        )
        lines += [f"    missing: {name}" for name in lacking]
    skipped = sum(not runs(e) for s in symbols() for e in examples(s))
    return "\n".join([*lines, f"{skipped} lines of examples are skipped"])


def test_every_exemption_is_needed() -> None:
    """A name that is gone, or has by now what it was excused from, leaves the table."""
    known = {s.name: s for s in symbols()}
    wrong = [key for key in EXEMPT if key[0] not in known or key[1] not in needs(known[key[0]])]
    wrong += [key for key in EXEMPT if key not in wrong and HAS[key[1]](known[key[0]])]
    assert not wrong


def test_every_example_runs() -> None:
    """``pytest tokenops`` runs them; a skipped one, of what needs a download, is listed with the reason."""
    skipped = {s.name for s in symbols() for e in examples(s) if not runs(e)}
    assert skipped == set(SKIPPED)


def test_what_is_missing_is_found() -> None:
    """The checks themselves, on a function that says nothing and on one that says all."""

    def silent(x: Float[Tensor, "b n"], y: Tensor) -> Tensor:
        check_tokens("silent", x)
        return x

    def told(x: Float[Tensor, "b n"], y: Tensor) -> Tensor:
        """A sum.

        .. math:: z = x + y

        Shapes: x (b n), y (b n) -> (b n).

        Raises:
            TokenOpsError: x not (b n d).

        >>> 1 + 1
        2

        Reference: Nobody (arXiv:0000.00000) §1.
        """
        check_tokens("told", x)
        return x

    for function, has in ((silent, False), (told, True)):
        function.__module__ = "tokenops.selectors.topk"
        symbol = Symbol("f", function, paper="arXiv:0000.00000", kind="scorer")
        assert needs(symbol) == set(CHECKS)
        assert {what for what in CHECKS if HAS[what](symbol)} == (set(CHECKS) if has else set())


@pytest.mark.parametrize("what", CHECKS)
def test_every_public_name_has_it(what: str) -> None:
    assert not missing(what), f"{what}:\n" + "\n".join(missing(what))


if __name__ == "__main__":
    print(report())
