"""Full-size architectures as data: enough to build them with random weights, without a download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenops.errors import TokenOpsError

_CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_VICUNA_7B = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_QWEN2_5_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llava-1.5-7b": {
        "model_type": "llava",
        "vision_config": _CLIP_L_336,
        "text_config": _VICUNA_7B,
        "image_token_index": 32000,
    },
    "llava-next-7b": {
        "model_type": "llava_next",
        "vision_config": _CLIP_L_336,
        "text_config": _VICUNA_7B,
        "image_token_index": 32000,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
        "text_config": _QWEN2_5_7B,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    },
}
"""Name -> what differs from the defaults of the config classes, as JSON. The LLaVAs are those on Vicuna."""


def config_of(source: str | Path, layers: int | None = None) -> Any:
    """The transformers config of a built-in name, a ``config.json`` or a folder with one.

    Args:
        source: where from; a name wins over a file of that name.
        layers: of the language model; None for all of them.

    Raises:
        TokenOpsError: neither a name nor a file, no JSON object, an unknown ``model_type``, values that the
            config class refuses, or more layers than there are.

    >>> config_of("qwen2.5-vl-7b", layers=2).text_config.num_hidden_layers
    2
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**(ARCHITECTURES.get(str(source)) or _read(Path(source))))
    except TokenOpsError:
        raise
    except Exception as error:  # the config classes have errors of their own
        raise TokenOpsError("random weights", f"{source} to be a config", error) from error
    return config if layers is None else shorten(config, layers)


def _read(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        expected = f"a config.json, a folder with one, or a name among {', '.join(ARCHITECTURES)}"
        raise TokenOpsError("random weights", expected, path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenOpsError("random weights", f"JSON in {path}", error) from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise TokenOpsError(
            "random weights", f"a JSON object with a model_type in {path}", type(found).__name__
        )
    return found


def shorten(config: Any, layers: int) -> Any:
    """The config with only the first layers of its language model.

    Raises:
        TokenOpsError: fewer than one, or more than there are.
    """
    text = config.get_text_config()
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= text.num_hidden_layers:
        raise TokenOpsError("layers", f"an int in [1, {text.num_hidden_layers}]", layers)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:layers]
    return config
