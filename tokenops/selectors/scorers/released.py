"""The importance scorer inside a released VisionSelector model, read without the model."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenops.errors import TokenOpsError
from tokenops.hub import Source, fetch, require

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NAMES = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
WHO = "LearnedScorer.from_pretrained"
_KEY = re.compile(r"((?:.*\.)?visual\.importance_scorer\.)([qk]_proj\.(?:weight|bias))")


def read_released(source: Source, *, revision: str | None = None) -> dict[str, Tensor]:
    """``q_proj`` (h, d), (h,) and ``k_proj`` (h, d), (h,) of a released model, as stored.

    Reads ``[prefix.]visual.importance_scorer.*`` and opens, or downloads, only the shards that hold it.

    Raises:
        TokenOpsError: no such folder, repository or file, no complete scorer in it, or unfit shapes.

    Reference: VisionSelector, arXiv:2510.16598, §3.1.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> q = {f"visual.importance_scorer.q_proj.{k}": t for k, t in torch.nn.Linear(8, 4).state_dict().items()}
    >>> k = {name.replace("q_proj", "k_proj"): t.clone() for name, t in q.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(q | k, f"{folder}/model.safetensors")
    ...     read_released(folder)["k_proj.weight"].shape
    torch.Size([4, 8])
    """
    folder = fetch(WHO, source, [INDEX], revision)
    if (folder / INDEX).is_file():
        placed = _weight_map(folder / INDEX)
    else:
        folder = fetch(WHO, source, [SINGLE], revision)
        with _open(folder / SINGLE) as file:
            placed = dict.fromkeys(file.keys(), SINGLE)
    keys = _keys(placed, source)
    shards: dict[str, list[str]] = defaultdict(list)
    for name in NAMES:
        shards[placed[keys[name]]].append(name)
    folder = fetch(WHO, source, sorted(shards), revision)
    tensors: dict[str, Tensor] = {}
    for shard, names in shards.items():
        tensors |= _read(folder / shard, {name: keys[name] for name in names})
    _check(tensors)
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_text("utf-8"))["weight_map"]
        plain = all(isinstance(shard, str) and Path(shard).name == shard for shard in placed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenOpsError(WHO, "a safetensors index with a weight_map", str(path)) from error
    if not plain:
        raise TokenOpsError(WHO, "shards that are files beside the index", str(path))
    return placed


def _keys(stored: Iterable[str], source: Source) -> dict[str, str]:
    """Short name -> stored name; exactly one scorer, complete."""
    scorers: dict[str, dict[str, str]] = defaultdict(dict)
    for key in stored:
        if match := _KEY.fullmatch(key):
            scorers[match[1]][match[2]] = key
    if len(scorers) != 1:
        found = ", ".join(sorted(scorers)) or "none"
        raise TokenOpsError(WHO, "one visual.importance_scorer among the tensors", f"{found} in {source}")
    [(prefix, keys)] = scorers.items()
    if missing := [name for name in NAMES if name not in keys]:
        raise TokenOpsError(WHO, f"{prefix}{{{', '.join(NAMES)}}}", f"no {', '.join(missing)} in {source}")
    return keys


def _open(path: Path) -> Any:
    """An open safetensors file; its tensors are read one by one."""
    safetensors = require("safetensors", WHO)
    if not path.is_file():
        raise TokenOpsError(WHO, f"{path.name} in {path.parent}", "no such file")
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise TokenOpsError(WHO, f"a whole safetensors file at {path}", str(error)) from error


def _read(path: Path, keys: Mapping[str, str]) -> dict[str, Tensor]:
    with _open(path) as file:
        if missing := sorted(set(keys.values()) - set(file.keys())):
            raise TokenOpsError(WHO, f"in {path} the tensors its index names", f"no {', '.join(missing)}")
        return {name: file.get_tensor(key) for name, key in keys.items()}


def _check(tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensors[name].shape) for name in NAMES}
    weight = shapes["q_proj.weight"]
    fits = len(weight) == 2 and shapes["k_proj.weight"] == weight
    fits = fits and shapes["q_proj.bias"] == shapes["k_proj.bias"] == weight[:1]
    if not fits or not all(t.is_floating_point() for t in tensors.values()):
        got = ", ".join(f"{name} {shape} {tensors[name].dtype}" for name, shape in shapes.items())
        raise TokenOpsError(WHO, "floating weights (hidden, dim), biases (hidden,), alike for q and k", got)
