"""What was kept, where, in the last call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        candidates: (n) long, the patches there were to choose from, by their number in the image, in
            sequence order; where a route's fate is exit, without those that left before.
        index: (k) long, the kept among them.
        grid: (k 3) long, their (frame or crop, row, column).
        positions: (k) long, their place in the original sequence.
        scores: (n) float, of the candidates, or None if the selector has none.
        mass: (k) float, how many original tokens each of them stands for: 1 where nothing is merged.
        n, k: how many candidates and kept patches there are.
        kept_scores: (k) float, those of the kept.
        nan_scores: how many scores were NaN (they rank last).

    >>> index, grid = torch.tensor([5, 7]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    >>> scores, mass = torch.tensor([0.1, 0.9, 0.2, 0.8]), torch.ones(2)
    >>> trace = Trace("layers", 0, 0, "image", 3, torch.arange(4, 8), index, grid, index + 1, scores, mass)
    >>> trace, trace.n, trace.k, trace.nan_scores
    (Trace(layers layer 3: image 0 of sample 0, 2 of 4 tokens), 4, 2, 0)
    """

    stage: str
    image: int
    sample: int
    kind: str
    layer: int | None
    candidates: Tensor
    index: Tensor
    grid: Tensor
    positions: Tensor
    scores: Tensor | None
    mass: Tensor

    @property
    def n(self) -> int:
        """Candidates."""
        return self.candidates.shape[0]

    @property
    def k(self) -> int:
        """Kept tokens."""
        return self.index.shape[0]

    @property
    def kept_scores(self) -> Tensor | None:
        """Scores (k) of the kept tokens, None if the selector has none.

        >>> index, places = torch.tensor([7]), torch.tensor([[0, 1, 2]])
        >>> scores, mass = torch.tensor([0.1, 0.9]), torch.ones(1)
        >>> candidates = torch.tensor([5, 7])
        >>> Trace("layers", 0, 0, "image", 1, candidates, index, places, index, scores, mass).kept_scores
        tensor([0.9000])
        """
        return None if self.scores is None else self.scores[torch.isin(self.candidates, self.index)]

    @property
    def nan_scores(self) -> int:
        """Number of NaN scores."""
        return 0 if self.scores is None else int(self.scores.isnan().sum())

    def __repr__(self) -> str:
        where = self.stage if self.layer is None else f"{self.stage} layer {self.layer}"
        return (
            f"Trace({where}: {self.kind} {self.image} of sample {self.sample}, {self.k} of {self.n} tokens)"
        )
