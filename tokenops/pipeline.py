"""A pipeline maps places in a model to stages; methods are functions that return one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from tokenops.errors import TokenOpsError

PLACES = ("after_projector", "layers")


class Pipeline(nn.Module):
    """What happens where: ``Pipeline(after_projector=Prune(TopK(scorer, keep=0.2)))``.

    Places: ``after_projector`` (between the projector or patch merger and the language model) and ``layers``
    (around the layers of the language model); in a vision transformer of timm, between its patch embedding
    and its blocks, and around those. Two pipelines join with ``|``. A pipeline is a module: its
    ``state_dict`` holds the parameters of the stages, ``train()`` switches soft selection on where a
    relaxation is set.

    Raises:
        TokenOpsError: unknown place, a stage that is no module, or two stages at one place.

    >>> Pipeline() | Pipeline()
    Pipeline()
    >>> list(Pipeline(after_projector=nn.Identity()).stages)
    ['after_projector']
    """

    def __init__(self, **stages: nn.Module) -> None:
        super().__init__()
        for place, stage in stages.items():
            if place not in PLACES:
                raise TokenOpsError("Pipeline", f"a place among {', '.join(PLACES)}", repr(place))
            if not isinstance(stage, nn.Module):
                raise TokenOpsError("Pipeline", f"an nn.Module at {place}", type(stage).__name__)
            self.add_module(place, stage)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """Place -> stage."""
        return dict(self.named_children())

    def __iter__(self) -> Iterator[str]:
        return iter(self.stages)

    def __or__(self, other: Pipeline) -> Pipeline:
        if not isinstance(other, Pipeline):
            return NotImplemented
        both = sorted(set(self.stages) & set(other.stages))
        if both:
            raise TokenOpsError("Pipeline", "one stage at a place", f"two at {', '.join(both)}")
        return Pipeline(**self.stages, **other.stages)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(f'{place}={stage!r}' for place, stage in self.stages.items())})"
