"""Selectors: ``(x (b n d), *, mask, <signals>) -> Selection``."""

from tokenops.selectors.random import Random
from tokenops.selectors.topk import TopK
from tokenops.selectors.uniform_grid import UniformGrid

__all__ = ["Random", "TopK", "UniformGrid"]
