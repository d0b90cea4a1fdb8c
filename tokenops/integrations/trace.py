"""What was kept, where, in the last call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """The decision of one stage about one image or video.

    Attributes:
        stage: place in the pipeline.
        image: number of the image or video in the call, in the order of the sequence.
        sample: row of the batch.
        kind: ``"image"`` or ``"video"``.
        layer: language-model layer, None before the language model.
        n: visual tokens there were.
        index: (k) long, the kept patches by their number in the image, ascending in sequence order.
        grid: (k 3) long, their (frame or crop, row, column).
        positions: (k) long, their place in the original sequence.
        scores: (n) float in sequence order, or None if the selector has none.
        mass: (k) float, how many original tokens each of them stands for: 1 where nothing is merged.
        nan_scores: how many scores were NaN (they rank last).

    >>> index, grid = torch.tensor([1, 3]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    >>> trace = Trace("after_projector", 0, 0, "image", None, 4, index, grid, index + 1, None, torch.ones(2))
    >>> trace, trace.k, trace.nan_scores
    (Trace(after_projector: image 0 of sample 0, 2 of 4 tokens), 2, 0)
    """

    stage: str
    image: int
    sample: int
    kind: str
    layer: int | None
    n: int
    index: Tensor
    grid: Tensor
    positions: Tensor
    scores: Tensor | None
    mass: Tensor

    @property
    def k(self) -> int:
        """Kept tokens."""
        return self.index.shape[0]

    @property
    def nan_scores(self) -> int:
        """Number of NaN scores."""
        return 0 if self.scores is None else int(self.scores.isnan().sum())

    def __repr__(self) -> str:
        where = self.stage if self.layer is None else f"{self.stage} layer {self.layer}"
        return (
            f"Trace({where}: {self.kind} {self.image} of sample {self.sample}, {self.k} of {self.n} tokens)"
        )
