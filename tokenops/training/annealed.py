"""A relaxation whose temperature follows the progress of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokenops.errors import TokenOpsError
from tokenops.signals import name_of, needs
from tokenops.training.schedules import Schedule


class Annealed(nn.Module):
    r"""A relaxation at temperature :math:`\tau(p)`, p the training progress in ``progress``.

    .. math:: m = \mathrm{relax}(x, k;\ \tau(p))

    ``TopK(scorer, keep, relax=Annealed(soft_topk, exponential(2.0, 0.1)))``: :class:`Trainable` sets
    ``progress`` of every Annealed in its pipeline before each batch, so a resumed run continues exactly. A
    low temperature closes the gap between soft and hard mask, a high one lets the gradient reach tokens far
    from the threshold. A schedule is a function, which ``tokenops.save`` refuses: set ``TopK.relax`` to the
    plain relaxation first. Selection in evaluation needs none.

    Args:
        relax: a relaxation with a keyword ``temperature``.
        temperature: progress in [0, 1] -> temperature > 0.

    Raises:
        TokenOpsError: a relaxation without a temperature, a schedule that is no function.

    >>> from tokenops.selectors.relaxations import soft_topk
    >>> from tokenops.training import exponential
    >>> relax = Annealed(soft_topk, exponential(4.0, 0.25))
    >>> relax.progress = 1.0
    >>> relax(torch.tensor([1.0, 0.0, -1.0]), 1.5)
    tensor([0.9820, 0.5000, 0.0180])
    """

    def __init__(self, relax: Callable[..., Tensor], temperature: Schedule) -> None:
        super().__init__()
        if not callable(relax) or "temperature" not in needs(relax):
            raise TokenOpsError("Annealed", "a relaxation with a temperature", name_of(relax))
        if not callable(temperature):
            raise TokenOpsError("Annealed", "temperature as a function of progress", repr(temperature))
        self.relax, self.temperature, self.progress = relax, temperature, 0.0

    def needs(self) -> dict[str, bool]:
        """What the relaxation takes but for the temperature.

        >>> from tokenops.selectors.relaxations import soft_topk
        >>> "temperature" in Annealed(soft_topk, lambda progress: 1.0).needs()
        False
        """
        return {name: required for name, required in needs(self.relax).items() if name != "temperature"}

    def forward(self, scores: Tensor, k: float | Tensor | None = None, **options: Any) -> Tensor:
        """The mask at the temperature of now.

        Shapes: scores (b n), k (b) -> (b n).
        """
        return self.relax(scores, k, temperature=self.temperature(self.progress), **options)

    def __repr__(self) -> str:
        return f"Annealed({name_of(self.relax)}, {name_of(self.temperature)})"
