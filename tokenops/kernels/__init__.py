"""Fast tensor operations, each with a plain reference beside it."""

from tokenops.kernels.attention import explain

__all__ = ["explain"]
