"""The project's own papers: version, changelog, dependencies, and what is under version control."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import source_imports as source

ROOT = source.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTION = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
COMES_WITH = {"triton": "torch"}
# which extras a user of each part has installed; everything else runs on the core alone
EXTRAS_OF = {
    # hf brings numpy; without it torch sorts
    "kernels": ("xformers", "hf"),
    "hub": ("hf",),
    "integrations": ("hf", "timm"),
    "training": ("train",),
    "analysis": ("demo",),
    "pocket": ("demo",),
    "demo": ("demo",),
    "cli": ("demo",),
    "__main__": ("demo",),
    "testing": ("test",),
}
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".json",
    ".cfg",
    ".sh",
    ".html",
    ".css",
    ".js",
    ".svg",
    "",
}
MEGABYTE = 1_000_000
WEIGHTS = "tokenops/pocket/weights/"
# file names and machines that mean nothing to a reader of the repository
PRIVATE = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:work|root|home|Users|mnt|opt)/\w",
            r"(?<![\w.])/tmp/\w",
            "work" + "place",
            "co" + "-?worker",
            r"\bthe lead(?:er)?\b(?! to)",
            r"\b(?:coding|AI|sub-?)\s?" + r"agents?\b",
            r"\bclaude\b|\bchatgpt\b|\bcopilot\b",
            r"\b(?:DESIGN|FACTS|METHODS|RELAXATIONS)(?:\.md)? ?§",
            r"\bshared/(?:DESIGN|FACTS|METHODS)",
        ]
    ),
    re.IGNORECASE,
)


def requirements(names: list[str]) -> set[str]:
    """Distribution names of a requirement list, ``tokenops[extra]`` followed."""
    found: set[str] = set()
    for name in names:
        match = re.match(r"([\w.-]+)(?:\[([\w, -]+)\])?", name)
        assert match, name
        if match[1] == "tokenops":
            for extra in match[2].split(","):
                found |= requirements(PROJECT["optional-dependencies"][extra.strip()])
        else:
            found.add(re.sub(r"[-_.]+", "-", match[1]).lower())
    return found


def tracked() -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for path in (ROOT / name for name in names if name) if path.is_file()]


def test_version_is_one_and_in_the_changelog() -> None:
    import tokenops

    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?", tokenops.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(tokenops.__version__)}\b", changelog, re.MULTILINE)
    try:
        installed = metadata.version("tokenops")
    except metadata.PackageNotFoundError:
        return
    assert installed == tokenops.__version__, "reinstall: pip install -e ."


def test_core_is_small() -> None:
    assert requirements(PROJECT["dependencies"]) == {"torch", "einops"}


def test_extras_are_honest() -> None:
    core = requirements(PROJECT["dependencies"])
    extras = {name: requirements(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}
    missing = []
    for i in source.third_party():
        name = DISTRIBUTION.get(i.top, COMES_WITH.get(i.top, i.top)).replace("_", "-").lower()
        own = EXTRAS_OF.get(source.unit(i.importer), ())
        if name not in core.union(*(extras[extra] for extra in own)) and not i.typing:
            missing.append(f"{i.where} imports {i.top}, which is not in {['core', *own]}")
    assert not missing, "\n".join(missing)


def test_constraints_pin_every_dependency_once() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line)
    assert len(pins) == sum(map(bool, lines))
    everything = ",".join(PROJECT["optional-dependencies"])
    wanted = requirements([f"tokenops[{everything}]", *PROJECT["dependencies"]])
    assert not wanted - set(pins), f"not pinned: {sorted(wanted - set(pins))}"
    assert pins["torch"] != "2.13.0", "resolves to a build that torchvision does not load next to"


def test_big_files_are_weights_only() -> None:
    big = [str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > MEGABYTE]
    assert not [name for name in big if not name.startswith(WEIGHTS)]


def test_texts_name_no_private_places() -> None:
    found = []
    for path in tracked():
        if path.suffix in TEXT and path.stat().st_size < MEGABYTE and path != Path(__file__):
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if match := PRIVATE.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def test_every_package_folder_is_a_package() -> None:
    """A folder without ``__init__.py`` imports by accident and is skipped by tools."""
    folders = {path.parent for path in source.PACKAGE.rglob("*.py")}
    assert not [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]
