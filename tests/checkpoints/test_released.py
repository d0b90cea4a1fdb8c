"""The scorer of a released model: right tensors, and nothing else opened or downloaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.errors import TokenOpsWarning
from tokenops.integrations.checkpoints import load, save
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer
from tokenops.selectors.scorers.released import INDEX, NAMES, SINGLE, read_released

SIZES = {"Qwen2.5-VL-3B": (2048, 1024), "Qwen2.5-VL-7B": (3584, 1792), "LLaVA-OV-1.5-8B": (4096, 2048)}
PREFIXES = ("visual.", "model.visual.")
SHARD = "model-00001-of-00004.safetensors"


def weights(dim: int, hidden: int, prefix: str = "visual.") -> dict[str, Tensor]:
    """Tensors of the released names and dtype, each with its own values."""
    torch.manual_seed(dim)
    shapes = {"weight": (hidden, dim), "bias": (hidden,)}
    names = ((f"{proj}_proj.{kind}", shape) for proj in "qk" for kind, shape in shapes.items())
    return {f"{prefix}importance_scorer.{n}": torch.randn(s, dtype=torch.bfloat16) for n, s in names}


def released(folder: Path, scorer: dict[str, Tensor], split: bool = False) -> Path:
    """A sharded model of which only the shards with the scorer exist."""
    placed = {
        "lm_head.weight": "model-00004-of-00004.safetensors",
        "model.embed_tokens.weight": "model-00002-of-00004.safetensors",
        "visual.patch_embed.proj.weight": SHARD,
        "visual.merger.importance_scorer_q_proj.weight": "model-00002-of-00004.safetensors",
    }
    shards: dict[str, dict[str, Tensor]] = {SHARD: {"visual.patch_embed.proj.weight": torch.ones(3)}}
    for name, tensor in scorer.items():
        shard = "model-00003-of-00004.safetensors" if split and ".k_proj." in name else SHARD
        shards.setdefault(shard, {})[name] = tensor
        placed[name] = shard
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return folder


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("dim", "hidden"), SIZES.values(), ids=SIZES)
def test_the_released_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, dim: int, hidden: int
) -> None:
    stored = weights(dim, hidden, prefix)
    released(tmp_path, stored, split=prefix != "visual.")
    opened: list[tuple[str, str]] = []
    real = safetensors.safe_open

    class Watched:
        def __init__(self, path: Path, **kwargs: Any) -> None:
            self.name, self.file = path.name, real(path, **kwargs)

        def __enter__(self) -> Watched:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_tensor(self, name: str) -> Tensor:
            opened.append((self.name, name))
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    scorer = LearnedScorer.from_pretrained(tmp_path)
    assert sorted(name for _, name in opened) == sorted(stored)
    assert (scorer.dim, scorer.hidden, scorer.trained_scope) == (dim, hidden, "sample")
    assert sum(p.numel() for p in scorer.parameters()) == 2 * hidden * (dim + 1)
    for name in NAMES:
        found = scorer.get_parameter(name)
        assert found.dtype == torch.float32
        assert found.requires_grad
        assert torch.equal(found, stored[f"{prefix}importance_scorer.{name}"].float())


def test_scores_of_the_paper(tmp_path: Path) -> None:
    scorer = LearnedScorer.from_pretrained(released(tmp_path, weights(16, 8)), dtype=torch.float64)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    q, k = scorer.q_proj(x), scorer.k_proj(x)
    torch.testing.assert_close(scorer(x), (q @ k.transpose(1, 2) / 8**0.5).mean(-1))


def test_one_file_dtype_and_device(tmp_path: Path) -> None:
    stored = weights(16, 8, "base.visual.") | {"lm_head.weight": torch.ones(2)}
    save_file(stored, tmp_path / SINGLE)
    scorer = LearnedScorer.from_pretrained(str(tmp_path), dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in scorer.parameters()} == {torch.bfloat16}
    assert torch.equal(scorer.k_proj.bias, stored["base.visual.importance_scorer.k_proj.bias"])
    with pytest.raises(TokenOpsError, match=r"from_pretrained: a floating dtype, got torch.int64"):
        LearnedScorer.from_pretrained(tmp_path, dtype=torch.int64)


def test_from_the_hub_only_index_and_shard(tmp_path: Path, hub: Callable[..., list[Any]]) -> None:
    asked = hub(released(tmp_path, weights(16, 8)))
    name = "JulietChoo/VisionSelector-Qwen2.5-VL-3B"
    assert LearnedScorer.from_pretrained(name, revision="main").dim == 16
    assert asked == [(name, "main", (INDEX,)), (name, "main", (SHARD,))]


def test_from_the_hub_one_file(tmp_path: Path, hub: Callable[..., list[Any]]) -> None:
    save_file(weights(16, 8), tmp_path / SINGLE)
    asked = hub(tmp_path)
    LearnedScorer.from_pretrained("a/b")
    assert asked == [("a/b", None, (INDEX,)), ("a/b", None, (SINGLE,)), ("a/b", None, (SINGLE,))]


Q = "visual.importance_scorer.q_proj"
STORED: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    ("no scorer", lambda t: t.clear(), "one visual.importance_scorer .*got none in"),
    (
        "two scorers",
        lambda t: t.update(weights(4, 2, "b.visual.")),
        "b.visual.importance_scorer., visual.impor",
    ),
    ("part", lambda t: t.pop(f"{Q}.bias"), r"visual.importance_scorer.\{q_proj.weight, .*no q_proj.bias in"),
    ("other bias", lambda t: t.update({f"{Q}.bias": torch.ones(3)}), r"alike for q and k, got .*bias \(3,\)"),
    ("other widths", lambda t: t.update({f"{Q}.weight": torch.ones(8, 4)}), r"q_proj.weight \(8, 4\)"),
    ("one axis", lambda t: t.update({f"{Q}.weight": torch.ones(8)}), r"q_proj.weight \(8,\)"),
    ("integers", lambda t: t.update({f"{Q}.bias": torch.ones(8, dtype=torch.int8)}), "floating .*torch.int8"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in STORED], ids=[c[0] for c in STORED])
def test_unfit_tensors(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    tensors = weights(16, 8)
    change(tensors)
    with pytest.raises(TokenOpsError, match=message):
        read_released(released(tmp_path, tensors))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "a safetensors index with a weight_map"),
        ("[]", "a safetensors index with a weight_map"),
        ('{"weight_map": 3}', "a safetensors index with a weight_map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "shards that are files beside the index"),
        ('{"weight_map": {"a": 1}}', "shards that are files beside the index"),
    ],
)
def test_unfit_index(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(TokenOpsError, match=message):
        read_released(tmp_path)


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(TokenOpsError, match=r"model.safetensors in .*got no such file"):
        read_released(tmp_path)
    released(tmp_path, weights(16, 8))
    data = (tmp_path / SHARD).read_bytes()
    (tmp_path / SHARD).write_bytes(data[:-1])
    with pytest.raises(TokenOpsError, match="a whole safetensors file at"):
        read_released(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / SHARD)
    with pytest.raises(TokenOpsError, match=r"the tensors its index names, got no visual.importance_scorer"):
        read_released(tmp_path)
    (tmp_path / SHARD).unlink()
    with pytest.raises(TokenOpsError, match=f"{SHARD} in .*got no such file"):
        read_released(tmp_path)


def test_another_scope_warns_once(tmp_path: Path) -> None:
    scorer = LearnedScorer.from_pretrained(released(tmp_path, weights(16, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prune(TopK(scorer, 0.2), scope="sample")
        Prune(TopK(LearnedScorer(16), 0.2), scope="image")
    with pytest.warns(TokenOpsWarning, match="trained with scope='sample', used with scope='image'") as told:
        pipeline = Pipeline(after_projector=Prune(TopK(scorer, 0.2)))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(pipeline, tmp_path / "saved")
    with pytest.warns(TokenOpsWarning) as told:
        back = load(tmp_path / "saved")
    assert len(told) == 1
    assert back.stages["after_projector"].selector.scorer.trained_scope == "sample"
    assert repr(scorer) == "LearnedScorer(16, hidden=8, trained_scope='sample')"
