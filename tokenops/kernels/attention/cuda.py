"""What the flash kernels behind xformers and ``varlen_attn`` ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenops.kernels.attention.request import Request


def why_not(request: Request) -> str | None:
    """What keeps a flash kernel on an NVIDIA GPU from serving, None if nothing."""
    if request.device.type != "cuda":
        return f"runs on CUDA, not on {request.device.type}"
    if torch.version.hip is not None:
        return "not tried on ROCm"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return f"half precision only, not {request.dtype}"
    if request.d != request.e:
        return f"values as wide as keys, not {request.e} and {request.d}"
    if request.d % 8 or not 8 <= request.d <= 256:
        return f"heads of a multiple of 8 up to 256 wide, not {request.d}"
    if torch.cuda.get_device_capability(request.device) < (8, 0):
        return "needs compute capability 8.0"
    return None


def aligned(x: Tensor) -> Tensor:
    """``x`` (t h d), or a copy whose heads lie side by side and whose rows begin at 16 bytes."""
    t, h, d = x.shape
    dense = x.stride(2) == 1 and (h == 1 or x.stride(1) == d)
    even = (t <= 1 or x.stride(0) % 8 == 0) and x.storage_offset() % 8 == 0
    return x if dense and even else x.clone(memory_format=torch.contiguous_format)
