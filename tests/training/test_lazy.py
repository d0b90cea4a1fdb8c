"""What importing loads, and what a missing extra says."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import tokenops.training


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_model_library() -> None:
    loaded = python("""
        import sys
        import tokenops.training as training
        training.linear(0.1, 2.0)
        training.soft_hard_bce, training.constant, training.Schedule
        from tokenops.training import Collator
        print(sorted({name.partition('.')[0] for name in sys.modules}))
    """)
    for library in ("transformers", "accelerate", "safetensors", "huggingface_hub", "PIL", "torchvision"):
        assert f"'{library}'" not in loaded


def test_a_missing_extra_is_named() -> None:
    said = python("""
        import sys

        class Missing:
            def find_spec(name, path=None, target=None):
                if name == "transformers":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing)
        import tokenops
        from tokenops import training
        for name in ("Trainable", "Curriculum"):
            for _ in range(2):
                try:
                    getattr(training, name)
                except tokenops.TokenOpsError as error:
                    print(error)
        training.Collator, training.cosine
    """)
    lines = said.splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("Trainable", "Trainable", "Curriculum", "Curriculum"), strict=True):
        assert line == f"{name}: transformers: pip install 'tokenops[train]', got not installed"


def test_an_error_inside_is_not_taken_for_a_missing_extra() -> None:
    said = python("""
        import sys
        sys.modules["tokenops.training.losses"] = None
        try:
            import tokenops.training
        except ModuleNotFoundError as error:
            print(error.name)
    """)
    assert said.strip() == "tokenops.training.losses"


def test_names() -> None:
    for name in tokenops.training.__all__:
        assert getattr(tokenops.training, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        tokenops.training.Trainer  # noqa: B018
    with pytest.raises(ImportError):
        from tokenops.training import nothing  # type: ignore[attr-defined]  # noqa: F401
