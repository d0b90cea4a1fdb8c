"""Selectors: ``(x (b n d), *, mask, <signals>) -> Selection``."""

from tokenops.selectors.diversity import Diverse
from tokenops.selectors.random import Random
from tokenops.selectors.topk import TopK
from tokenops.selectors.uniform_grid import UniformGrid

__all__ = ["Diverse", "Random", "TopK", "UniformGrid"]
