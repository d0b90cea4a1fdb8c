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
            a component that its arguments do not rebuild, or a path where no folder can be made or written.

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
    state = _state(pipeline, "save")
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
    weights = safetensors.save(tensors, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "format_version": VERSION,
        "tokenops_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "pipeline": description,
    }
    _make(folder)
    _write(folder / WEIGHTS, weights)
    _write(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False).encode() + b"\n")


def load(source: Source, *, revision: str | None = None) -> Pipeline:
    """The pipeline saved in a folder or a hub repository (``"owner/name"``), on the CPU, in evaluation mode.

    Components of tokenops are found by name; those of another package must have been imported before. The
    pipeline is first built without memory (on the meta device) and compared with the file's tensors.

    Warns ``TokenOpsWarning`` when a tensor holds NaN: it loads as it was saved, to be looked at.

    Raises:
        TokenOpsError: no such folder or repository, no tokenops checkpoint in it, a newer format, an unknown
            component or one that does not fit its place, missing, unexpected or mis-shaped tensors, tensors
            of another kind of dtype, or a damaged file.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    ...
    tokenops.errors.TokenOpsError: load: an existing folder or a hub id (owner/name), got 'no/such/folder'
    """
    require("safetensors", "load")
    folder = fetch("load", source, [CONFIG, WEIGHTS], revision)
    config = _read_config(folder)
    weights = _read(folder, WEIGHTS)
    state = _tensors(weights, folder)
    sketch = _sketch(config["pipeline"])
    if sketch is not None:
        _check_fits(sketch, state, folder)
    if hashlib.sha256(weights).hexdigest() != config["weights_sha256"]:
        raise TokenOpsError("load", f"the {WEIGHTS} that {CONFIG} was saved with", f"another one in {folder}")
    pipeline = _build(config["pipeline"])
    _check_fits(pipeline, state, folder)
    for name, tensor in _state(pipeline).items():
        tensor.data = tensor.data.to(state[name].dtype)
    pipeline.load_state_dict(state)
    if spoiled := [name for name, t in state.items() if t.isnan().any()]:
        warnings.warn(f"load: NaN in {_some(spoiled)} of {folder}", TokenOpsWarning, stacklevel=2)
    return pipeline.eval()


def _state(module: nn.Module, who: str = "load") -> dict[str, Tensor]:
    """The state_dict, parameters and buffers themselves."""
    state = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TokenOpsError(who, f"{name} as a tensor", type(value).__name__)
        if value.layout is not torch.strided or (value.is_meta and who == "save"):
            raise TokenOpsError(who, f"{name} as a dense tensor with data", f"{value.layout}, {value.device}")
    return state


def _check_rebuilt(pipeline: Pipeline, description: dict[str, Any]) -> None:
    """The description builds what it was read from: same description, tensor names, shapes, dtypes, ties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenOpsWarning)
        twin = _build(description)
    if describe(twin) != description:
        raise TokenOpsError("save", "attributes that keep the constructor arguments", f"another {twin}")
    wanted, got = _layout(pipeline), _layout(twin)
    if wanted != got:
        changed = sorted(name for name in wanted | got if wanted.get(name) != got.get(name))
        what = "constructor arguments that rebuild every tensor (name, shape, kind of dtype, sharing)"
        raise TokenOpsError("save", what, f"a difference at {_some(changed)}")


def _layout(module: nn.Module) -> dict[str, tuple[tuple[int, ...], str, str]]:
    """Name -> shape, kind of dtype and the first name of the same tensor."""
    first: dict[int, str] = {}
    state = _state(module, "save")
    return {k: (tuple(t.shape), _kind(t), first.setdefault(id(t), k)) for k, t in state.items()}


def _kind(tensor: Tensor) -> str:
    """Floating dtypes may stand for each other, no others."""
    return "floating" if tensor.is_floating_point() else str(tensor.dtype)


def _build(description: Any, device: str = "cpu") -> Any:
    """Build on a device without moving the global random state."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build(description)


def _sketch(description: Any) -> Any:
    """The pipeline without memory; None where a constructor computes with values, which meta tensors lack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenOpsWarning)
        try:
            return _build(description, "meta")
        except TokenOpsError as error:
            if isinstance(error.__cause__, RuntimeError):
                return None
            raise


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise TokenOpsError("load", f"{name} in {folder}", type(error).__name__) from error


def _read_config(folder: Path) -> dict[str, Any]:
    text = _read(folder, CONFIG)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
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


def _tensors(weights: bytes, folder: Path) -> dict[str, Tensor]:
    """The tensors of the file, in its own bytes."""
    broken = require("safetensors", "load").SafetensorError
    try:
        return require("safetensors.torch", "load").load(weights)
    except (broken, KeyError, RuntimeError, AssertionError) as error:
        raise TokenOpsError("load", f"a whole {WEIGHTS} in {folder}", str(error)) from error


def _check_fits(pipeline: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """A pipeline whose tensors are those of the file: names, shapes, kinds of dtype."""
    if not isinstance(pipeline, Pipeline):
        got = getattr(pipeline, "__name__", None) or type(pipeline).__name__
        raise TokenOpsError("load", f"a Pipeline in {folder / CONFIG}", got)
    own = _state(pipeline)
    if missing := sorted(set(own) - set(state)):
        raise TokenOpsError("load", f"every tensor of the pipeline in {WEIGHTS}", f"no {_some(missing)}")
    if unexpected := sorted(set(state) - set(own)):
        raise TokenOpsError("load", f"only tensors of the pipeline in {WEIGHTS}", _some(unexpected))
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise TokenOpsError("load", f"{name} of shape {tuple(tensor.shape)}", tuple(state[name].shape))
        if _kind(tensor) != _kind(state[name]):
            raise TokenOpsError("load", f"{name} as {_kind(tensor)}", state[name].dtype)


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise TokenOpsError("save", "a folder that can be made", f"{folder} ({error})") from error


def _write(path: Path, data: bytes) -> None:
    """Write beside ``path``, then rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            opened = temporary.open("xb")
        except OSError as error:
            what = f"{path.parent} ({type(error).__name__}: {error})"
            raise TokenOpsError("save", "a folder that can be written", what) from error
        with opened as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
