"""tokenops' attention inside transformers models: padding is taken out before it and put back behind it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from tokenops.errors import TokenOpsError, TokenOpsWarning
from tokenops.integrations.packing import Packing
from tokenops.integrations.wrap import eager
from tokenops.kernels.attention import attention

NAME = "tokenops"
_WHY = "_tokenops_why"
_FIXED = "a cache of fixed size, or queries that are not the newest keys"
_told: set[str] = set()
_own: dict[type, bool] = {}

# what changes the attention beyond a mask; the model's own eager attention knows how
_BEYOND = {
    "softcap": "soft-capped logits",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
}
# keys that an indexer chose: such models write the choice into the mask for "eager" and "sdpa" alone,
# and their own eager attention does not read these arguments
_CHOSEN = ("indices", "block_indices")
_MAKERS = ("create_causal_mask", "create_bidirectional_mask", "create_masks_for_generate")
_PACKED = ("cache", "block_tables", "cu_seq_lens_q")


def register_attention() -> None:
    r"""Let transformers know the attention ``"tokenops"``; calling again changes nothing.

    Afterwards ``model.set_attn_implementation("tokenops")`` and ``from_pretrained(...,
    attn_implementation="tokenops")`` run a model whose attention comes from transformers'
    ``ALL_ATTENTION_FUNCTIONS`` through :func:`tokenops.kernels.attention.attention`: work
    :math:`\sum_i n_i^2` over the real lengths n instead of :math:`b \max_i n_i^2`. Outputs equal sdpa's
    at every token that is no padding; at padding they are 0 before the output projection, so what a model
    reads at padding differs (CLIP's pooled text where the end token is masked).

    What has nothing to take out goes to sdpa: calls without padding, single queries (they read every key
    once, packing would read it twice) and calls inside ``torch.compile``, whose graph cannot know lengths.
    With a ``TokenOpsWarning`` once for each reason so do windows, chunks, packed sequences, caches of fixed
    size, masks given in four dimensions, the soft masks of training, dropout and ``output_attentions``;
    soft-capped logits, sinks and position biases go to the model's own eager attention.
    Refused when they are called: paged sequences, sparse attention (DeepSeek V3.2 and its kin choose keys for
    sdpa and eager alone), models with an attention of their own (``set_attn_implementation`` leaves those as
    they are), and models that compute with their mask (the pooling head of SigLIP 2 with padding).

    Raises:
        TokenOpsError: transformers is not installed, or its ``"tokenops"`` is somebody else's.

    >>> from tokenops import pocket
    >>> register_attention()
    >>> model, _ = pocket.load()
    >>> model.set_attn_implementation("tokenops")
    """
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        expected = "transformers: pip install 'tokenops[hf]'"
        raise TokenOpsError("register_attention", expected, "not installed") from error
    there = ALL_ATTENTION_FUNCTIONS.get(NAME, packed_attention)
    if there is not packed_attention:
        raise TokenOpsError("register_attention", f"no other attention {NAME!r}", there)
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)


# -- the mask: once for each call of the model ----------------------------------------------------------


def packed_mask(**arguments: Any) -> Packing | Tensor | None:
    """The mask function: what sdpa's would hide, as a :class:`Packing` where padding and causality are all.

    Args:
        arguments: those of ``transformers.masking_utils.sdpa_mask``.

    Raises:
        TokenOpsError: the model of this ``config`` has an attention of its own.
    """
    from transformers.masking_utils import sdpa_mask

    if _own_attention(type(arguments.get("config"))):
        expected = f"a model that takes its attention from transformers' registry; use another than {NAME!r}"
        raise TokenOpsError("attention", expected, type(arguments["config"]).__name__)
    padding, queries, keys = arguments.get("attention_mask"), arguments["q_length"], arguments["kv_length"]
    why = _not_packed(**arguments)
    if why is not None or torch.compiler.is_compiling():
        mask = sdpa_mask(**arguments)
        if mask is not None and not torch.compiler.is_compiling():
            vars(mask)[_WHY] = why
        return mask
    causal = _causal(arguments)
    square = queries in (1, keys) or not causal
    if padding is None:
        if square:
            return None
        padding = torch.ones(1, keys, dtype=torch.bool, device=arguments.get("device", "cpu"))
        padding = padding.expand(arguments["batch_size"], keys)
    start = arguments.get("kv_offset", 0)
    packing = Packing(padding[:, start : start + keys].bool(), queries, causal=causal)
    return packing if not square or packing.hides else None


@torch.compiler.assume_constant_result
def _own_attention(config: type) -> bool:
    """Whether a module beside this configuration makes masks for an attention that cannot be replaced."""
    if config not in _own:
        beside = config.__module__.rpartition(".")[0] + ".modeling_"
        modules = [(name, vars(m)) for name, m in list(sys.modules.items()) if name.startswith(beside)]
        _own[config] = any(
            "ALL_ATTENTION_FUNCTIONS" not in there
            and any(maker in there for maker in _MAKERS)
            and any("Attention" in k and getattr(v, "__module__", "") == name for k, v in there.items())
            for name, there in modules
        )
    return _own[config]


def _causal(arguments: dict[str, Any]) -> bool:
    from transformers.masking_utils import causal_mask_function

    return arguments.get("mask_function", causal_mask_function) is causal_mask_function


def _not_packed(
    *,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **arguments: Any,
) -> str | None:
    """Why a mask has to be written out; None if it need not be, "" if the model wants it so."""
    from transformers.masking_utils import bidirectional_mask_function

    causal = _causal(arguments)
    if local_size is not None:
        return "attention in windows or chunks"
    if not causal and arguments["mask_function"] is not bidirectional_mask_function:
        return "a mask of more than causality and padding (packed sequences, overlays)"
    fixed = isinstance(q_offset, Tensor) or isinstance(kv_offset, Tensor)
    if fixed or (causal and q_offset + q_length != kv_offset + kv_length):
        return _FIXED
    if attention_mask is not None and attention_mask.shape[1] < kv_length + kv_offset:
        return _FIXED
    return None if (allow_is_causal_skip if causal else allow_is_bidirectional_skip) else ""


# -- the attention: in every layer ----------------------------------------------------------------------


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packing | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function: (b h q d), (b g k d), (b g k e) -> (b q h e), and weights if eager gave some.

    Raises:
        TokenOpsError: paged or packed sequences; sparse attention; lengths other than the mask's; logits to
            be changed in a model without eager attention.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    why = None
    if not isinstance(attention_mask, Tensor) and (
        paged := [name for name in _PACKED if kwargs.get(name) is not None]
    ):
        raise TokenOpsError("attention", "padded sequences, not packed or paged ones", ", ".join(paged))
    if chosen := [name for name in _CHOSEN if kwargs.get(name) is not None]:
        expected = "a model without sparse attention, whose choice of keys only sdpa and eager see: use sdpa"
        raise TokenOpsError("attention", expected, ", ".join(chosen))
    if beyond := [name for name in _BEYOND if kwargs.get(name) is not None]:
        tell("the model's eager attention", _BEYOND[beyond[0]])
        mask = _additive(module, query, key, attention_mask, kwargs.get("is_causal"))
        return _eager(module)(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    if isinstance(attention_mask, Packing):
        why = "dropout" if dropout else "output_attentions" if kwargs.get("output_attentions") else None
        if why is None and attention_mask.queries > 1:
            return _run(query, key, value, attention_mask, scaling), None
        attention_mask = attention_mask.dense
    elif attention_mask is None:
        attention_mask = _newest(module, query, key, kwargs.get("is_causal"))
    elif not torch.compiler.is_compiling():
        why = vars(attention_mask).get(_WHY, "a mask given in four dimensions, or the soft mask of training")
    if why:
        tell("sdpa", why)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


@eager
def _run(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None) -> Tensor:
    q, k, v = packing.pack(query, key, value)
    return packing.pad(attention(q, k, v, packing.segments, causal=packing.causal, scale=scale))


def _eager(module: Any) -> Any:
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise TokenOpsError("attention", "a model with eager attention", type(module).__name__)
    return function


def _newest(module: Any, query: Tensor, key: Tensor, causal: bool | None) -> Tensor | None:
    """Causality for the newest of the keys, which sdpa's ``is_causal`` takes for the oldest."""
    return _written(module, query, key, causal) if 1 < query.shape[2] < key.shape[2] else None


def _written(module: Any, query: Tensor, key: Tensor, causal: bool | None) -> Tensor | None:
    """Causality as a mask, the queries being the newest of the keys; None where there is none."""
    q, k = query.shape[2], key.shape[2]
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return None
    return torch.ones(1, 1, q, k, dtype=torch.bool, device=query.device).tril(k - q)


def _additive(module: Any, query: Tensor, key: Tensor, mask: Any, causal: bool | None) -> Tensor | None:
    """A mask that eager attention can add; what sdpa would take from ``is_causal`` is written out."""
    if mask is None and query.shape[2] > 1:
        mask = _written(module, query, key, causal)
    mask = mask.dense if isinstance(mask, Packing) else mask
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.zeros_like(mask, dtype=query.dtype)
    return zero.masked_fill(~mask, torch.finfo(query.dtype).min)


def tell(who: str, why: str) -> None:
    """Warn once for each reason."""
    if why in _told or torch.compiler.is_compiling():
        return
    _told.add(why)
    warnings.warn(f"attention: {who} instead of {NAME}: {why}", TokenOpsWarning, stacklevel=2)
