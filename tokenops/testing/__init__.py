"""The contracts of the components as functions: ``check_scorer(my_scorer)`` runs every law on drawn inputs.

They need Hypothesis (``pip install tokenops[dev]``) when they run, not when they are imported.
"""

from tokenops.testing.kernels import check_kernel
from tokenops.testing.mergers import check_merger
from tokenops.testing.relaxations import check_relaxation
from tokenops.testing.routers import check_router
from tokenops.testing.scorers import check_scorer
from tokenops.testing.selectors import check_selector
from tokenops.testing.tokenmaps import check_assignment, check_selection

__all__ = [
    "check_assignment",
    "check_kernel",
    "check_merger",
    "check_relaxation",
    "check_router",
    "check_scorer",
    "check_selection",
    "check_selector",
]
