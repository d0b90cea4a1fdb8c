"""What GitHub, pre-commit and citation tools read: it parses, and agrees with the rest of the project."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import source_imports as source

yaml: Any = pytest.importorskip("yaml")
ROOT = source.ROOT


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["bug", "method_request"])
def test_issue_forms_have_what_github_asks_for(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown")
        assert part["attributes"]["label"]
        assert part["type"] != "dropdown" or part["attributes"]["options"]


def test_pre_commit_runs_the_pinned_ruff() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    ruff = next(r for r in read(".pre-commit-config.yaml")["repos"] if "ruff" in r["repo"])
    assert ruff["rev"] == "v" + re.search(r"^ruff==(.+)$", pins, re.MULTILINE)[1]  # type: ignore[index]
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_citation_is_of_this_version() -> None:
    import tokenops

    citation = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == tokenops.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in project["authors"]]
