"""What Python may know of a tensor: not while torch compiles, traces, exports or transforms what it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def may_look(x: Tensor) -> bool:
    """Whether Python may branch on values: eagerly, where there are values and reading one costs nothing."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and not _recorded()


def _recorded() -> bool:
    """Whether what runs now is to run again on other values."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    # by make_fx
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def transformed() -> bool:
    """Inside of a function transform or of forward-mode differentiation; True where torch does not say."""
    functions = getattr(torch._C, "_are_functorch_transforms_active", None)
    return functions is None or functions() or getattr(forward_ad, "_current_level", 0) >= 0
