"""A pipeline on disk or on the hub: what it is in ``config.json``, its tensors in ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenops.errors import TokenOpsError, TokenOpsWarning
from tokenops.hub import Source, fetch, require
from tokenops.integrations.describe import build, describe
from tokenops.pipeline import Pipeline

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "tokenops", 1


def save(pipeline: Pipeline, folder: str | os.PathLike[str]) -> None:
    """Write ``pipeline`` to ``folder``: ``config.json`` and ``model.safetensors``, nothing pickled.

    Everything is checked, by rebuilding the pipeline once, before a file is touched; then each of the two
    files appears whole or not at all, and other files of the folder stay. Dtypes are kept, devices are not.

    Raises:
        TokenOpsError: no pipeline, a component or constructor argument that cannot be written (it is named),
            a component that its arguments do not rebuild, or a path that is a file.

    >>> import tempfile, tokenops
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(tokenops.Pipeline(), folder)
    ...     load(folder)
    Pipeline()
    """
    from tokenops import __version__

    safetensors = require("safetensors.torch", "save")
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("save", "a Pipeline", type(pipeline).__name__)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise TokenOpsError("save", "a folder", f"the file {folder}")
    description = describe(pipeline)
    _check_rebuilt(pipeline, description)
    # copies: safetensors refuses tensors that share memory, and a shared module has one under two names
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in _state(pipeline).items()}
    weights = safetensors.save(tensors, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "format_version": VERSION,
        "tokenops_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "pipeline": description,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, weights)
    _write(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False).encode() + b"\n")


def load(source: Source, *, revision: str | None = None) -> Pipeline:
    """The pipeline saved in a folder or a hub repository (``"owner/name"``), on the CPU, in evaluation mode.

    Components of tokenops are found by name; those of another package must have been imported before.

    Raises:
        TokenOpsError: no such folder or repository, no tokenops checkpoint in it, a newer format, an unknown
            component, missing, unexpected or mis-shaped tensors, or a damaged file.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: load: an existing folder or a hub id (owner/name), got 'no/such/folder'
    """
    safetensors = require("safetensors", "load")
    folder = fetch("load", source, [CONFIG, WEIGHTS], revision)
    config = _read_config(folder)
    weights = _read(folder, WEIGHTS)
    try:
        state = require("safetensors.torch", "load").load(weights)
    except safetensors.SafetensorError as error:
        raise TokenOpsError("load", f"a whole {WEIGHTS} in {folder}", str(error)) from error
    pipeline = _build(config["pipeline"])
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("load", f"a Pipeline in {folder / CONFIG}", type(pipeline).__name__)
    _fill(pipeline, state)
    if hashlib.sha256(weights).hexdigest() != config["weights_sha256"]:
        raise TokenOpsError("load", f"the {WEIGHTS} that {CONFIG} was saved with", f"another one in {folder}")
    return pipeline.eval()


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict, parameters and buffers themselves."""
    state = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TokenOpsError("save", f"{name} as a tensor", type(value).__name__)
        if value.is_meta or value.layout is not torch.strided:
            raise TokenOpsError(
                "save", f"{name} as a dense tensor with data", f"{value.layout}, {value.device}"
            )
    return state


def _check_rebuilt(pipeline: Pipeline, description: dict[str, Any]) -> None:
    """The description builds what it was read from: same description, tensor names, shapes and ties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenOpsWarning)
        twin = _build(description)
    if describe(twin) != description:
        raise TokenOpsError("save", "attributes that keep the constructor arguments", f"another {twin}")
    wanted, got = _layout(pipeline), _layout(twin)
    if wanted != got:
        changed = sorted(name for name in wanted | got if wanted.get(name) != got.get(name))
        what = "constructor arguments that rebuild every tensor (name, shape, sharing)"
        raise TokenOpsError("save", what, f"a difference at {_some(changed)}")


def _layout(module: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and the first name of the same tensor."""
    first: dict[int, str] = {}
    return {k: (tuple(t.shape), first.setdefault(id(t), k)) for k, t in _state(module).items()}


def _build(description: Any) -> Any:
    """Build on the CPU without moving the global random state."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return build(description)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise TokenOpsError("load", f"{name} in {folder}", type(error).__name__) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(folder, CONFIG))
    except ValueError as error:
        if isinstance(error, TokenOpsError):
            raise
        raise TokenOpsError("load", f"JSON in {folder / CONFIG}", str(error)) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise TokenOpsError("load", f'"format": "{FORMAT}" in {folder / CONFIG}', "a file of something else")
    version = config.get("format_version")
    if type(version) is not int or not 1 <= version <= VERSION:
        writer = config.get("tokenops_version")
        got = f"{version!r}, written by tokenops {writer}"
        raise TokenOpsError("load", f"format_version 1 to {VERSION} (upgrade tokenops for a newer one)", got)
    if missing := {"pipeline", "weights_sha256"} - set(config):
        raise TokenOpsError("load", f"{', '.join(sorted(missing))} in {folder / CONFIG}", "none")
    return config


def _fill(pipeline: Pipeline, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors in, strictly; the pipeline takes their dtypes."""
    own = _state(pipeline)
    if missing := sorted(set(own) - set(state)):
        raise TokenOpsError("load", f"every tensor of the pipeline in {WEIGHTS}", f"no {_some(missing)}")
    if unexpected := sorted(set(state) - set(own)):
        raise TokenOpsError("load", f"only tensors of the pipeline in {WEIGHTS}", _some(unexpected))
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise TokenOpsError("load", f"{name} of shape {tuple(tensor.shape)}", tuple(state[name].shape))
        tensor.data = tensor.data.to(state[name].dtype)
    pipeline.load_state_dict(state)


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _write(path: Path, data: bytes) -> None:
    """Write beside ``path``, then rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
