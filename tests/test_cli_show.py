"""``tokenops list``, ``show`` and ``cite``: everything that is registered, readable and complete."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import source_imports as source

pytest.importorskip("typer")
pytest.importorskip("rich")

from tokenops import TokenOpsError, list_recipes, recipes
from tokenops.cli import DONE, MISUSED, main
from tokenops.cli.cite import bibtex, papers
from tokenops.cli.components import Component, components
from tokenops.cli.plain import formula, paragraphs
from tokenops.cli.show import arguments, example, families, told
from tokenops.integrations.families import FAMILIES
from tokenops.integrations.probe import find_tower

EVERYTHING = components()
each = pytest.mark.parametrize("component", EVERYTHING, ids=[f"{c.kind}/{c.name}" for c in EVERYTHING])


@each
def test_every_docstring_reads_as_plain_text(component: Component) -> None:
    text = "\n".join(paragraphs(inspect.cleandoc(component.entry.component.__doc__ or "")))
    assert text.strip()
    assert not re.search(r"\\|``|:[a-z]+:`|\.\. math|>>>", text)


@each
def test_every_component_is_shown(component: Component, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", f"{component.kind}/{component.name}"]) == DONE
    said = capsys.readouterr().out
    heading, _, rest = said.partition("\n")
    assert heading.startswith(f"{component.module}.{component.name}  {component.kind}")
    assert component.summary.split()[0] in rest
    for part in ("Needs", "Trainable", "Example"):
        assert f"\n  {part}:" in said or f"\n{part}\n" in said
    assert ("Builds" in said) == (component.kind == "recipe")
    assert "\x1b" not in said
    assert not [line for line in said.splitlines() if line != line.rstrip()]
    parameters = inspect.signature(component.entry.component).parameters
    assert [a.name.strip("*") for a in arguments(component)] == list(parameters)


def test_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "cls_attention", "--json"]) == DONE
    recipe, scorer = json.loads(capsys.readouterr().out)
    assert (recipe["kind"], scorer["kind"]) == ("recipe", "scorer")
    assert recipe["needs"]["cls_attention"]["required"]
    assert recipe["families"] == {"llava": ["clip_vision_model"], "llava_next": ["clip_vision_model"]}
    assert recipe["pipeline"].startswith("Pipeline(after_projector=Prune(TopK(cls_attention")
    assert scorer["pipeline"] is None
    assert "s_j = 1/H Σ_h A_(h,CLS,j)" in scorer["description"]


def test_arguments_have_defaults_and_text() -> None:
    (found,) = [c for c in EVERYTHING if (c.kind, c.name) == ("recipe", "visionzip")]
    keep, contextual, cls = arguments(found)
    assert keep.default is None
    assert "ratio or count" in keep.about
    assert (contextual.default, cls.default) == ("0.15625", "True")
    assert cls.about.endswith("from all others.")
    assert told(found)["trainable"] is False


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fastb", "fastv"),
        ("learnedscorer2", "LearnedScorer"),
        ("recipe/TopK", "TopK"),
        ("nope", None),
        ("zzzz", None),
    ],
)
def test_an_unknown_name(name: str, near: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "cite"):
        assert main([command, name]) == MISUSED
        heard = capsys.readouterr()
        assert heard.out == ""
        assert repr(name) in heard.err
        assert ("did you mean" in heard.err) == (near is not None)
        assert near is None or near in heard.err


def test_capitals_are_overlooked_only_where_nothing_else_fits(capsys: pytest.CaptureFixture[str]) -> None:
    for name, kinds in (("topk", ["selector"]), ("random", ["recipe"]), ("Random", ["selector"])):
        assert main(["show", name, "--json"]) == DONE
        assert [c["kind"] for c in json.loads(capsys.readouterr().out)] == kinds


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal", ["cls_attention", "received_attention", "vision_keys"])
def test_families_are_those_that_attach_takes(family: str, signal: str) -> None:
    able = families([signal]).get(family, [])
    for kind in [*FAMILIES[family].towers, "something_else"]:
        tower = SimpleNamespace(config=SimpleNamespace(model_type=kind))
        parts: Any = SimpleNamespace(family=FAMILIES[family], vision_tower=tower)
        if kind in able:
            find_tower(parts, signal)
        else:
            with pytest.raises(TokenOpsError, match=signal):
                find_tower(parts, signal)


@pytest.mark.hf
@pytest.mark.parametrize("name", list_recipes())
def test_the_example_of_every_recipe_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    (component,) = [c for c in EVERYTHING if (c.kind, c.name) == ("recipe", name)]
    exec(compile(example(component), name, "exec"), {})
    assert "of 144 tokens" in capsys.readouterr().out


@each
def test_the_example_of_every_component_runs(component: Component) -> None:
    if component.kind == "recipe":
        assert callable(getattr(recipes, component.name))
    else:
        exec(compile(example(component), component.name, "exec"), {})


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\frac{1}{HN} \sum_{h,i} A_{h,i,j}", "1/(HN) Σ_(h,i) A_(h,i,j)"),
        (r"\frac1H x", "1/H x"),
        (r"\log\frac{p}{1 - p}", "log(p/(1 - p))"),
        (r"\Big\lfloor \frac{a}{b}\Big\rfloor \qquad \bar k", "⌊a/b⌋\nk\u0304"),
        (r"\sqrt{k H}", "√(k H)"),
        (r"\unknown x", r"\unknown x"),
    ],
)
def test_formulas(tex: str, plain: str) -> None:
    assert formula(tex) == plain


def test_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--kind", "merger", "--json"]) == DONE
    listed = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in listed} == {"bipartite", "Contextual", "nearest_kept"}
    assert main(["list", "--kind", "scorers"]) == MISUSED
    assert "did you mean scorer" in capsys.readouterr().err


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["list"]) == DONE
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_process_that_can_write_only_ascii_and_loads_no_model_library() -> None:
    """√ and ∈ become question marks; listing and showing stay quick."""
    code = (
        "import sys; from tokenops.cli import main\n"
        "codes = [main(a.split()) for a in ('list', 'show Route', 'cite alvts')]\n"
        "heavy = {'transformers', 'timm', 'PIL', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy or any(codes) else 0)"
    )
    variables = {"PYTHONPATH": str(source.ROOT), "PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert "(i ? S)" in done.stdout


@each
def test_every_paper_is_known(component: Component) -> None:
    found = papers(component.entry.component, component.paper)
    assert component.paper is None or component.paper.removeprefix("arXiv:") in found
    for paper in found:
        entry = bibtex(paper)
        assert entry.startswith(("@inproceedings{", "@article{"))
        assert re.search(r"\n  title = \{.+\},\n  author = \{.+\},\n", entry)
        assert entry.count("{") == entry.count("}")


def test_the_bibliography_has_each_paper_once() -> None:
    text = (source.PACKAGE / "cli" / "papers.bib").read_text()
    for pattern in (r"@\w+\{(\w+),", r"eprint = \{([\d.]+)\}"):
        found = re.findall(pattern, text)
        assert len(found) == len(set(found)) == text.count("\n@") + 1
    assert all(f"abs/{paper}}}" in text for paper in re.findall(r"eprint = \{([\d.]+)\}", text))


def test_cite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite"]) == DONE
    assert capsys.readouterr().out.startswith("@software{tokenops,")
    assert main(["cite", "visionselector", "fastv", "last_attention", "--json"]) == DONE
    entries = json.loads(capsys.readouterr().out)
    assert [e["arxiv"] for e in entries] == [None, "2510.16598", "2403.06764"]
    assert all(e["bibtex"].startswith("@") for e in entries)


def test_cite_what_a_recipe_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "visionzip", "--json"]) == DONE
    made_of = [e["arxiv"] for e in json.loads(capsys.readouterr().out)[1:]]
    assert made_of == ["2412.04467", "2412.01818"]


@pytest.mark.hf
def test_cite_a_saved_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    import tokenops
    from tokenops.routers import LowRankAttention

    folder = tmp_path / "a pipeline"
    both = recipes.divprune(0.5) | recipes.alvts({0: LowRankAttention(8, 2, heads=2)})
    tokenops.save(both, folder)
    assert main(["cite", str(folder), "--json"]) == DONE
    assert {e["arxiv"] for e in json.loads(capsys.readouterr().out)} == {None, "2503.02175", "2606.14277"}
    (folder / "config.json").write_text('{"model_type": "llava"}')
    assert main(["cite", str(folder)]) == MISUSED
    (folder / "config.json").write_text("{")
    assert main(["cite", str(folder)]) == MISUSED
    assert main(["cite", str(tmp_path)]) == MISUSED
    assert capsys.readouterr().err.count("tokenops.save") == 2


def test_names_import_from_where_it_says() -> None:
    for component in EVERYTHING:
        found = getattr(importlib.import_module(component.module), component.name)
        assert found is component.entry.component
