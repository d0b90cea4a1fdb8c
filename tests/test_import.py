"""``import tokenops`` is cheap and changes nothing; looked at from fresh processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import source_imports as source

STATE = """
import json, logging, os, random, signal, sys, warnings
import torch, einops

def state():
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "path": list(sys.path),
        "meta_path": [repr(f) for f in sys.meta_path],
        "excepthook": repr(sys.excepthook),
        "signals": [repr(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "warning filters": [repr(f) for f in warnings.filters],
        "root logger": [root.level, [repr(h) for h in root.handlers]],
        "our logger": [[repr(h) for h in logging.getLogger("tokenops").handlers]],
        "random": hash(random.getstate()),
        "torch random": torch.get_rng_state().tolist(),
        "torch": [
            repr(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark, repr(torch.get_default_device()),
        ],
        "cuda started": torch.cuda.is_initialized(),
    }

before, modules = state(), set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tokenops
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "new": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "warnings": [str(w.message) for w in caught],
    "cuda": after["cuda started"],
}))
"""

REGISTRATIONS = """
import json
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
import transformers.models.llava.modeling_llava as llava

def state():
    return [
        sorted(AttentionInterface().keys()), sorted(AttentionMaskInterface().keys()),
        sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES), sorted(vars(llava)),
        repr(llava.LlavaForConditionalGeneration.forward), repr(llava.LlavaModel.forward),
    ]

before = state()
import importlib
import tokenops
for package in json.loads(input()):
    importlib.import_module(package)
print(json.dumps(state() == before))
"""

PACKAGES = """
import importlib, json, sys
packages, forbidden = json.loads(input())
found = {}
for package in packages:
    importlib.import_module(package)
    for name in sorted(set(forbidden) & set(sys.modules) - set(found)):
        found[name] = package
print(json.dumps(found))
"""


def run(code: str, cwd: Path, stdin: str = "") -> Any:
    """Run ``code`` in a new interpreter in ``cwd``, which is also its home; its last line is JSON."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}
    environment |= {"PYTHONPATH": str(source.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR"), str(cwd))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, input=stdin, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    *chatter, answer = done.stdout.splitlines()
    assert not chatter, chatter
    return json.loads(answer)


def packages() -> list[str]:
    """The packages to import, those whose own requirements are installed."""
    needs = {"tokenops.pocket": ("numpy", "PIL")}
    names = [name for name, path in source.modules().items() if path.name == "__init__.py"]
    return [n for n in names if all(map(importlib.util.find_spec, needs.get(n, ())))]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What a fresh process saw when it imported the package, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("fresh")
    return run(STATE, folder), folder


def test_import_changes_nothing(imported: tuple[Any, Path]) -> None:
    seen, folder = imported
    assert not seen["changed"]
    assert not seen["warnings"]
    assert not seen["cuda"]
    assert not list(folder.rglob("*")), "files were written"


def test_import_loads_torch_and_einops_only(imported: tuple[Any, Path]) -> None:
    new = set(imported[0]["new"])
    assert "tokenops" in new
    assert new - {"tokenops", "torch", "einops"} <= sys.stdlib_module_names


def test_no_package_loads_a_model_library(tmp_path: Path) -> None:
    forbidden = ["transformers", "timm", "accelerate", "xformers", "sklearn", "matplotlib", "huggingface_hub"]
    assert run(PACKAGES, tmp_path, json.dumps([packages(), forbidden])) == {}


@pytest.mark.hf
def test_import_registers_nothing_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert run(REGISTRATIONS, tmp_path, json.dumps(packages())) is True


def test_public_names_exist() -> None:
    import tokenops

    missing = [name for name in tokenops.__all__ if not hasattr(tokenops, name)]
    assert not missing
    assert list(tokenops.__all__) == sorted(set(tokenops.__all__))
    hidden = set(tokenops.__all__) - set(dir(tokenops))
    assert not hidden, f"completion does not offer {hidden}: lazy names belong into __dir__"
