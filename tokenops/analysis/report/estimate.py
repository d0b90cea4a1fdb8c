"""What the cost model says about one prefill, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tokenops.analysis.cost import cost
from tokenops.analysis.cost.architecture import architecture
from tokenops.analysis.cost.parts import layer_ops
from tokenops.analysis.measure.limits import image_sizes
from tokenops.errors import TokenOpsError
from tokenops.integrations import Trace
from tokenops.pipeline import Pipeline


def estimate(
    model: nn.Module, every: Sequence[Trace], inputs: Mapping[str, Any], pipeline: Pipeline | None, text: int
) -> dict[str, Any]:
    """FLOPs of all parts and of each decoder layer; ``reason`` instead where the cost model cannot tell.

    Args:
        model: its config and dtype are read.
        every: the images and videos, nothing dropped.
        inputs: of the call, for sizes.
        pipeline: None for the model alone.
        text: all other tokens.
    """
    try:
        arch = architecture(model)
        found = cost(model, image_sizes(every, inputs)[0], pipeline, text=text)
    except TokenOpsError as error:
        return {"flops": None, "layers": None, "reason": str(error)}
    size = getattr(torch, found.dtype).itemsize
    each = [
        sum(op.flops for op in layer_ops(arch.decoder, length, 1, size, found.pairs))
        for length in found.tokens_per_layer
    ]
    left_out = ", ".join(found.not_counted)
    return {"flops": found.flops, "layers": each, "reason": f"not counted: {left_out}" if left_out else None}
