"""Docstrings for a terminal: formulas in plain characters, roles as names."""

from __future__ import annotations

import re
import textwrap

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "lambda": "λ",
    "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "Phi": "Φ",
    "Sigma": "Σ", "sum": "Σ", "prod": "Π", "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "ne": "≠",
    "in": "∈", "notin": "∉", "to": "→", "infty": "∞", "approx": "≈", "sim": "~", "top": "T", "partial": "∂",
    "cup": "∪", "cap": "∩", "bigcup": "∪", "oplus": "⊕", "dots": "…", "ldots": "…", "cdots": "…",
    "iff": "⇔", "lVert": "‖", "rVert": "‖", "Vert": "‖", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊",
    "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "mid": "|", "max": "max", "min": "min", "log": "log ",
    "exp": "exp", "cos": "cos", "arg": "arg ", "quad": "  ", "qquad": "\n", "{": "{", "}": "}", ",": " ",
    ";": " ", " ": " ", "!": "", "left": "", "right": "", "big": "", "Big": "", "bigl": "", "bigr": "",
    "|": "‖", "\\": "\n", "subset": "⊂", "forall": "∀", "odot": "⊙", "circ": "∘", "sqcup": "⊔",
    "setminus": "∖", "lt": "<", "gt": ">", "neq": "≠", "leq": "≤", "geq": "≥", "ll": "≪", "gg": "≫",
    "equiv": "≡", "propto": "∝", "wedge": "∧", "vee": "∨", "land": "∧", "lor": "∨", "colon": ":",
    "star": "*", "ast": "*", "pm": "±", "omega": "ω", "Omega": "Ω", "theta": "θ", "psi": "ψ", "chi": "χ",
    "xi": "ξ", "zeta": "ζ", "kappa": "κ", "Delta": "Δ", "Gamma": "Γ", "Lambda": "Λ", "Pi": "Π",
    "Theta": "Θ", "nabla": "∇", "ell": "ℓ", "sup": "sup", "inf": "inf", "ln": "ln ", "sin": "sin",
    "emptyset": "∅", "limits": "", "Bigl": "", "Bigr": "", "bigg": "", "Bigg": "", "bigm": "",
    "Rightarrow": "⇒", "Leftrightarrow": "⇔", "rightarrow": "→", "leftarrow": "←", "mapsto": "↦",
    "gets": "←", "vert": "|", "lvert": "|", "rvert": "|", "subseteq": "⊆", "Pr": "P", "#": "#", "%": "%",
    "_": "_", "$": "$", "&": "&", "longleftrightarrow": "⇔", "Longleftrightarrow": "⇔",
    "longrightarrow": "→", "blacksquare": "■",
}  # fmt: skip
_PLAIN = {"mathrm", "text", "operatorname", "mathbb", "mathbf", "mathcal", "mathit", "mathsf", "boldsymbol"}
_ACCENTS = {"bar": "\u0304", "hat": "\u0302", "tilde": "\u0303", "check": "\u030c", "dot": "\u0307"}
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+|.)|[{}_^&]|\s+|.", re.DOTALL)
_TIDY = (
    (r"([⌊⌈⟨]) +", r"\1"),
    (r" +([⌋⌉⟩])", r"\1"),
    (r"‖ ([^‖]*) ‖", r"‖\1‖"),
    (r"(log|max) +(?=[(_])", r"\1"),
)
_ROLE = re.compile(r":[a-z:]+:`~?([^`]*)`")


def formula(tex: str) -> str:
    r"""One TeX formula in plain characters; commands it does not know stay as they are.

    >>> formula(r"s_i = \frac{1}{\sqrt h} \sum_j q_i^\top k_{i,j}")
    's_i = 1/√h Σ_j q_i^T k_(i,j)'
    """
    text = _Reader(_TOKEN.findall(" ".join(tex.split()))).all()
    for pattern, instead in _TIDY:
        text = re.sub(pattern, instead, text)
    return "\n".join(line.strip() for line in text.split("\n"))


class _Reader:
    """Tokens of TeX, read one after the other."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def all(self, end: str | None = None) -> str:
        found = ""
        while self.tokens and (token := self.tokens.pop()) != end:
            found += self._one(token)
        return found

    def _one(self, token: str) -> str:
        if token == "{":
            return self.all("}")
        if token in "_^":
            return token + _inside(self.argument())
        if token == "&":
            return ""
        return self._command(token[1:]) if token.startswith("\\") else token

    def _command(self, name: str) -> str:
        if name in ("frac", "tfrac", "dfrac"):
            above = _whole(self.argument())
            return f"{above}/{_whole(self.argument())}"
        if name == "sqrt":
            return f"√{_whole(self.argument())}"
        if name in _PLAIN:
            return self.argument()
        if name in _ACCENTS:
            return self.argument() + _ACCENTS[name]
        if name == "log" and self.tokens and self.tokens[-1].endswith("frac"):
            return f"log({self.argument()})"
        return _SYMBOLS.get(name, f"\\{name}")

    def argument(self) -> str:
        while self.tokens and self.tokens[-1].isspace():
            self.tokens.pop()
        if not self.tokens:
            return ""
        token = self.tokens.pop()
        return self._one(token).strip()


def _inside(text: str) -> str:
    """Something that may stand below or above."""
    return text if re.fullmatch(r"[^\W_]+\u0304?|\W|\([^()]*\)", text) else f"({text})"


def _whole(text: str) -> str:
    """Something that a slash or a root may stand beside."""
    simple = re.fullmatch(r"√?(\d+|[^\W\d])(_\w+)?\u0304?|[^\W\d_]+\([^()]*\)", text)
    return text if simple else f"({text})"


def paragraphs(doc: str) -> list[str]:
    r"""The paragraphs of a docstring, formulas and roles made readable; doctests are left out.

    >>> paragraphs("Keep ``k``.\n\n.. math:: \\sum_i p_i = k\n\n>>> 1\n1")
    ['Keep `k`.', '    Σ_i p_i = k']
    """
    found = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        if block.lstrip().startswith(">>>"):
            continue
        head, math, tex = block.partition(".. math::")
        if math and not head.strip():
            found.append(textwrap.indent(formula(tex), "    "))
        else:
            found.append(inline(block))
    return found


def inline(text: str) -> str:
    r"""Running text without markup.

    >>> inline(r"A :class:`~tokenops.stages.Prune` with ``keep`` and :math:`\tau \to 0`.")
    'A Prune with `keep` and τ → 0.'
    """
    return re.sub(r"``([^`]*)``", r"`\1`", _ROLE.sub(_role, text))


def filled(text: str, width: int, margin: str, first: str | None = None) -> str:
    """Text in lines of a width, without spaces at their ends; ``first`` stands before the first of them.

    >>> print(filled("as many words as fit", 18, "    ", "a   "))
    a   as many words
        as fit
    """
    words = " ".join(text.split())
    start = margin if first is None else first
    room = max(width, len(margin) + 20)
    return textwrap.fill(words, room, initial_indent=start, subsequent_indent=margin, break_long_words=False)


def _role(found: re.Match[str]) -> str:
    if found[0].startswith(":math:"):
        return formula(found[1])
    short = found[0].partition("`")[2].startswith("~")
    return found[1].rpartition(".")[2] if short else found[1]
