"""Mergers: ``(x (b n d), selection, *, mask, <signals>) -> Assignment``, what becomes of the rest."""

from tokenops.selectors.mergers.bipartite import bipartite
from tokenops.selectors.mergers.contextual import Contextual
from tokenops.selectors.mergers.nearest_kept import nearest_kept

__all__ = ["Contextual", "bipartite", "nearest_kept"]
