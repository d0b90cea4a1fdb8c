"""Contextual tokens: what is not selected is summed up by a few of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenops.budget import Budget, Keep, keep_count
from tokenops.errors import TokenOpsError
from tokenops.registry import register
from tokenops.selectors.cosine import directions, most_alike
from tokenops.selectors.mergers.rows import merge_rows
from tokenops.shapes import Bool, Float
from tokenops.tokenmap import Assignment, Selection


@register("merger", paper="arXiv:2412.04467", sample=lambda: Contextual(0.75))
class Contextual(nn.Module):
    r"""Selected tokens stay alone; C of the n' others are targets, and the rest of them join these.

    .. math:: T = \{0, s, 2s, \dots, (C-1)s\}, \quad s = \lfloor n'/C \rfloor, \qquad
        g(i) = \arg\max_{j \in T} \cos(k_i, k_j)

    with k the head-mean attention keys of the vision tower where the model gives them (``vision_keys``), the
    features otherwise. ``keep`` counts all groups: C = k - (selected tokens), never below 0. With C = 0 there
    is nothing to join and the others leave. The lowest index wins ties; zero vectors are alike.

    Args:
        keep: groups of a row, selected tokens included: ratio in (0, 1] or count; may be set later.

    Shapes: x (b n d), selection of (b n), vision_keys (b n e), mask (b n) False for padding -> Assignment
    of (b n).

    Raises:
        TokenOpsError: bad keep; x not (b n d); a selection, keys or mask of another shape.

    >>> x = torch.tensor([[[5.0, 5.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
    >>> one = Selection.from_mask(torch.tensor([[True, False, False, False]]))
    >>> Contextual(3)(x, one).anchor, Contextual(3)(x, one).group
    (tensor([[0, 1, 2]]), tensor([[0, 1, 2, 2]]))

    Reference: VisionZip (arXiv:2412.04467) §3.3. Deviation: a group is the mean of its tokens; the released
    code adds the mean of the others to the target.
    """

    keep = Budget()
    positional = True

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        selection: Selection,
        *,
        vision_keys: Float[Tensor, "b n e"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Assignment:
        """The groups."""
        if vision_keys is not None:
            check_keys("Contextual", vision_keys, x)
        return merge_rows("Contextual", x, selection, mask, self._join, vision_keys)

    def _join(self, by: Tensor, kept: Tensor) -> Tensor:
        home = torch.where(kept, torch.arange(by.shape[0], device=by.device), -1)
        rest = (~kept).nonzero().flatten()
        count = min(keep_count(self.keep, by.shape[0]) - by.shape[0] + rest.shape[0], rest.shape[0])
        if count <= 0:
            return home
        targets = rest[:: rest.shape[0] // count][:count]
        unit = directions(by)
        home = home.index_copy(0, rest, targets[most_alike(unit[rest], unit[targets])[1]])
        return home.index_copy(0, targets, targets)

    def __repr__(self) -> str:
        return f"Contextual(keep={self.keep})"


def check_keys(who: str, keys: object, x: Tensor) -> None:
    """``vision_keys`` is a float tensor (b n e) beside ``x`` (b n d).

    Raises:
        TokenOpsError: it is not.
    """
    if isinstance(keys, Tensor) and keys.is_floating_point() and keys.device == x.device:
        if keys.ndim == 3 and keys.shape[:2] == x.shape[:2]:
            return
    got = f"{keys.dtype} {tuple(keys.shape)}" if isinstance(keys, Tensor) else type(keys).__name__
    raise TokenOpsError(who, f"vision_keys float {(*x.shape[:2], 'e')} on {x.device}", got)
