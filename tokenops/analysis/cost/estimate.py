"""The cost of a prefill from a model's config alone, and the token count from which a pipeline can help."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenops.analysis.cost.architecture import architecture, inner
from tokenops.analysis.cost.devices import Device, find_device
from tokenops.analysis.cost.images import Tokens, images_of
from tokenops.analysis.cost.parts import head_ops, layer_ops, projector_ops, tower_ops
from tokenops.analysis.cost.plan import Setting, make_plan
from tokenops.analysis.cost.result import Cost
from tokenops.analysis.cost.work import Part
from tokenops.errors import TokenOpsError, check_ints
from tokenops.pipeline import Pipeline

PAIRS = ("full", "causal")


def cost(
    model_or_config: Any,
    tokens: Tokens,
    pipeline: Pipeline | None = None,
    *,
    text: int = 64,
    batch: int = 1,
    dtype: torch.dtype | str | None = None,
    device: str | Device = "h200",
    pairs: str = "causal",
) -> Cost:
    r"""FLOPs, bytes, KV-cache bytes and roofline time of one prefill, part by part; no weights are needed.

    .. math:: t = \sum_\text{operations} \max\Big(\frac{\text{FLOPs}}{\text{FLOPs/s}},
        \frac{\text{bytes}}{\text{bytes/s}}\Big)

    * One multiply-add is two FLOPs. What counts is what torch's ``FlopCounterMode`` sees: matrix products,
      convolutions, attention; but for rotary tables, which are left out. ``pairs="causal"`` counts the
      l·(l+1)/2 pairs of a query and a key that a causal kernel computes, ``"full"`` all l², as that counter
      does.
    * Every operation reads its inputs and weights and writes its outputs once. Norms, activations and
      residuals count nothing, attention maps never reach memory: the time is a bound from below.
    * Logits are those of the last token. Embedding look-ups are free, also where the head is tied to them.
    * Selections run in float32, at the device's float32 rate, as the components compute; but for the
      projections of low-rank attention, which are the model's dtype. Their kernels' launches are counted
      (``launches``), in no other number.
    * Rows of a batch are alike: ``tokens`` and ``text`` are those of one row.

    Args:
        model_or_config: a transformers model or its config: LLaVA, LLaVA-NeXT, Qwen2.5-VL.
        tokens: visual tokens that reach the language model: an int for one image, or a list with an int or a
            size for every image, see :func:`~tokenops.analysis.cost.images.images_of`. ``0`` and ``[]``
            mean no image.
        pipeline: what to attach; None for the model as it is.
        text: all other tokens of a row.
        batch: rows.
        dtype: of weights and activations; by default the model's, or what its config says, or bfloat16.
        device: a name (``h200``, ``h100``, ``a100``, ``rtx4090``, ``cpu`` for an estimate of this
            machine) or a :class:`Device`.
        pairs: ``"full"`` or ``"causal"``.

    Raises:
        TokenOpsError: an unknown family, device or dtype; numbers below 0; a batch below 1; no tokens at all;
            a pipeline that cannot be read as data.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    >>> vision = CLIPVisionConfig(image_size=336, patch_size=14)
    >>> config = LlavaConfig(vision_config=vision, text_config=LlamaConfig())
    >>> cost(config, 576).tokens_per_layer[0]
    640
    >>> from tokenops import recipes
    >>> round(cost(config, 576, recipes.uniform(0.2)).speedup_limit.flops_language, 1)
    3.6
    """
    arch = architecture(model_or_config)
    check_ints("cost", text=(text, 0), batch=(batch, 1))
    if pairs not in PAIRS:
        raise TokenOpsError("cost", f"pairs among {', '.join(PAIRS)}", repr(pairs))
    machine, name = find_device(device), dtype_name(model_or_config, dtype)
    machine.rate(name)
    images = images_of(arch, tokens)
    size = getattr(torch, name).itemsize
    setting = Setting(arch, images, text, batch, size, pairs)
    if not setting.length([image.tokens for image in images]):
        raise TokenOpsError("cost", "at least one token of text or image", "none")
    whole = None if pipeline is None else _estimate(setting, None, machine, name, None)
    return _estimate(setting, pipeline, machine, name, whole)


def _estimate(
    setting: Setting, pipeline: Pipeline | None, device: Device, dtype: str, whole: Cost | None
) -> Cost:
    arch, batch, size = setting.arch, setting.batch, setting.size
    plan = make_plan(setting, pipeline)
    layers = Part()
    known: dict[int, Part] = {}
    for length in plan.lengths:
        if length not in known:
            ops = layer_ops(arch.decoder, length, batch, size, setting.pairs)
            known[length] = Part.of(ops, device, dtype)
        layers += known[length]
    parts = {
        "vision tower": tower_ops(arch.tower, setting.images, batch, size),
        "projector": projector_ops(arch.projector, setting.images, batch, size),
        "selection": plan.ops,
        "head": head_ops(arch.decoder, batch, size),
    }
    costs = {name: Part.of(ops, device, dtype) for name, ops in parts.items()}
    numbers = 2 * arch.decoder.kv_heads * arch.decoder.head_dim * batch * sum(plan.lengths)
    return Cost(
        family=arch.family,
        device=device.name,
        dtype=dtype,
        batch=batch,
        text=setting.text,
        tokens=tuple(image.tokens for image in setting.images),
        parts={name: costs.get(name, layers) for name in (*list(costs)[:3], "layers", "head")},
        visual_per_layer=tuple(plan.visual),
        tokens_per_layer=tuple(plan.lengths),
        kv_bytes=numbers * size,
        launches=plan.launches,
        launch_seconds=plan.launches * device.launch,
        not_counted=tuple(sorted(plan.not_counted)),
        pairs=setting.pairs,
        whole=whole,
    )


def dtype_name(model_or_config: Any, dtype: torch.dtype | str | None) -> str:
    """The name of a floating dtype; by default that of the parameters, or of the config, or bfloat16.

    Raises:
        TokenOpsError: something else.

    >>> dtype_name(None, torch.float16), dtype_name(None, None)
    ('float16', 'bfloat16')
    """
    model = inner(model_or_config)
    if dtype is None and isinstance(model, nn.Module):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if dtype is None:
        dtype = getattr(getattr(model, "config", model), "dtype", None) or torch.bfloat16
    made = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(made, torch.dtype) or not made.is_floating_point:
        raise TokenOpsError("cost", "a floating dtype", repr(dtype))
    return str(made).removeprefix("torch.")


def break_even(
    model_or_config: Any,
    pipeline: Pipeline,
    *,
    device: str | Device = "h200",
    text: int = 64,
    batch: int = 1,
    dtype: torch.dtype | str | None = None,
    most: int = 1 << 17,
) -> int | None:
    r"""The smallest number of visual tokens, as one image, at which a pipeline can save time; None if never.

    .. math:: n^* = \min \{n : t_\text{whole}(n) - t_\text{pipeline}(n)
        > \text{launches} \cdot t_\text{launch}\}

    What it saves is roofline time, weights that are read whatever the length included. What it costs is
    the selection's roofline time and the launch of every kernel it adds, as if nothing hid them.

    Fewer tokens in the layers save more, so the search doubles until the pipeline helps and halves the gap.
    Budgets are rounded to whole tokens, which moves the gain up and down by one token's time; so the search
    then goes on downwards, until 64 numbers in a row do not help.

    Args:
        model_or_config: as for :func:`cost`.
        pipeline: what to attach.
        device: as for :func:`cost`; with ``launch=0``, a compiled call or a graph.
        text: as for :func:`cost`.
        batch: as for :func:`cost`.
        dtype: as for :func:`cost`.
        most: where the search ends.

    Raises:
        TokenOpsError: what :func:`cost` refuses, no pipeline, ``most`` below 1.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    >>> from tokenops import recipes
    >>> config = LlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig())
    >>> 150 < break_even(config, recipes.uniform(0.2)) < 220
    True
    >>> break_even(config, recipes.uniform(1.0)) is None
    True
    """
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("break_even", "a Pipeline", type(pipeline).__name__)
    check_ints("cost", most=(most, 1))
    machine, dtype = find_device(device, "break_even"), dtype_name(model_or_config, dtype)
    config = getattr(inner(model_or_config), "config", model_or_config)

    def helps(n: int) -> bool:
        made = cost(config, n, pipeline, text=text, batch=batch, dtype=dtype, device=machine)
        assert made.whole is not None
        return made.language.seconds + made.launch_seconds < made.whole.language.seconds

    return first_true(helps, most)


def first_true(holds: Any, most: int, slack: int = 64) -> int | None:
    """The smallest n in [1, most] where ``holds(n)``, which is True from somewhere on but for ``slack`` n.

    >>> first_true(lambda n: n >= 37, 100), first_true(lambda n: False, 100)
    (37, None)
    """
    high = 1
    while not holds(high):
        if high == most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    n = high
    while n > max(1, high - slack):
        n -= 1
        if holds(n):
            high = n
    return high
