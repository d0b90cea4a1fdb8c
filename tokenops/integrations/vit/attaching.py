"""Attach a pipeline to a vision transformer of timm, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import unwrap as inner_model
from tokenops.integrations.handles import AttachedHandle
from tokenops.integrations.trace import Trace
from tokenops.integrations.vit.checks import check
from tokenops.integrations.vit.parts import VitParts, readable_attention
from tokenops.integrations.vit.state import VitState
from tokenops.integrations.vit.trace import tokens_per_block, traces
from tokenops.integrations.wrap import Around, is_wrapped, unwrap, wrap
from tokenops.pipeline import Pipeline

_STATE = "_tokenops"


class VitHandle(AttachedHandle):
    """A pipeline attached to a vision transformer. A context manager; :meth:`remove` ends it.

    >>> from timm.models import VisionTransformer
    >>> from tokenops import recipes
    >>> model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    >>> handle = attach_vit(model.eval(), recipes.uniform(keep=0.25))
    >>> features = model.forward_features(torch.zeros(1, 3, 16, 16))
    >>> handle.tokens_per_layer, handle.trace[0].k, handle.attached
    ((4.0, 4.0), 4, True)
    >>> handle.model is model, list(handle.pipeline.stages)
    (True, ['after_projector'])
    >>> handle.remove()
    >>> handle.attached
    False
    """

    _state: VitState

    @property
    def trace(self) -> tuple[Trace, ...]:
        """What was kept in the last forward: one entry per place, block and image of the batch."""
        return traces(self._state.last, self._state.depth)

    @property
    def tokens_per_layer(self) -> tuple[float, ...]:
        """Patches of an image that ran in each block in the last forward; 0 where it did not get to."""
        return tokens_per_block(self._state.last, self._state.depth)

    @property
    def attached(self) -> bool:
        """Whether the model still runs this pipeline."""
        return self.model.__dict__.get(_STATE) is self._state

    def _places(self) -> list[tuple[Any, str]]:
        ours = [m for m in self.model.modules() if m.__dict__.get(_STATE) is self._state]
        return [(module, method) for module in ours for method in _methods(module, self.model)]

    def _restore(self) -> None:
        _detach(self.model, self._state)


def attach_vit(model: nn.Module, pipeline: Pipeline) -> VitHandle:
    """Run ``pipeline`` inside a timm VisionTransformer or Eva, as :func:`tokenops.attach` does.

    Prefix tokens (CLS, distillation, registers) always run, every image of a batch keeps as many patches, and
    ``keep=1.0`` is bit-identical. ``after_projector`` is the place between the patch embedding, positions
    added, and the first block; ``layers`` are the blocks. Patches that left for good (``Prune``, ``Merge``,
    ``Route(fate="exit")``) are not among the features that ``forward_features`` returns, so the head pools
    over what is left. Intermediates keep all patches, those that left with their last state.

    The attention that a route reads (``cls_attention``, ``received_attention``) is that of the block before,
    0 for patches that did not run there. There is no text: ``last_attention`` and ``next_attention`` are
    refused, and :class:`~tokenops.routers.LowRankAttention` takes the prefix tokens for it.

    Raises:
        TokenOpsError: another model or other blocks; attached already; a signal that is not there; a
            component on another device or of another width. The model is untouched then. In a call: a soft
            mask of training, an attention mask where tokens are left out, patch dropout.

    >>> from timm.models import VisionTransformer
    >>> from tokenops import recipes
    >>> model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    >>> with attach_vit(model.eval(), recipes.uniform(keep=0.25)) as handle:
    ...     logits = model(torch.zeros(1, 3, 16, 16))
    >>> handle.trace[0], logits.shape
    (Trace(after_projector: image 0 of sample 0, 4 of 16 tokens), torch.Size([1, 1000]))
    """
    model = inner_model(model)
    parts = VitParts.of(model)
    if _STATE in model.__dict__:
        raise TokenOpsError("attach", "a model without a pipeline (join them with |)", "one attached already")
    check(parts, pipeline)
    state = VitState(pipeline, len(parts.blocks), parts.signals())
    if pipeline.training != model.training:
        pipeline.train(model.training)
    try:
        for module, method, around in _wanted(parts, state):
            module.__dict__[_STATE] = state
            wrap(module, method, around)
    except BaseException:
        _detach(model, state)
        raise
    return VitHandle(model, state)


def attached_vit(model: nn.Module) -> VitHandle | None:
    """The handle of the pipeline that a vision transformer runs, None without one.

    Raises:
        TokenOpsError: something that is no torch model.

    >>> from timm.models import VisionTransformer
    >>> from tokenops import recipes
    >>> model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    >>> with attach_vit(model, recipes.uniform(keep=0.25)):
    ...     print(attached_vit(model).pipeline)
    Pipeline(after_projector=Prune(UniformGrid(keep=0.25), scope='image', gate='attention'))
    >>> attached_vit(model) is None
    True
    """
    model = inner_model(model)
    state = model.__dict__.get(_STATE)
    return VitHandle(model, state) if isinstance(state, VitState) else None


def _wanted(parts: VitParts, state: VitState) -> Iterator[tuple[Any, str, Around]]:
    """What attach wraps: module, method, wrapper."""
    yield parts.model, "forward_features", _features
    yield parts.model, "forward_intermediates", _intermediates
    yield parts.model.norm_pre, "forward", _enter
    for number, block in enumerate(parts.blocks):
        yield block, "forward", _block(number)
    if state.route is None or not state.signals:
        return
    for number, block in enumerate(parts.blocks[:-1]):
        if state.route.schedule(number + 1) is not None:
            attention: Any = readable_attention(block)
            yield attention.q_norm, "forward", _show("q_norm")
            yield attention.k_norm, "forward", _show("k_norm")


def _methods(module: Any, model: Any) -> tuple[str, ...]:
    return ("forward_features", "forward_intermediates") if module is model else ("forward",)


def _detach(model: nn.Module, state: VitState) -> None:
    for module in model.modules():
        if module.__dict__.get(_STATE) is state:
            for method in _methods(module, model):
                if is_wrapped(module, method):
                    unwrap(module, method)
            module.__dict__.pop(_STATE)


# The wrappers find the state on the module they run on, so that a deep copy uses its own.


def _features(model: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return model.__dict__[_STATE].features(model, original, arguments)


def _intermediates(model: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return model.__dict__[_STATE].intermediates(model, original, arguments)


def _enter(norm: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return norm.__dict__[_STATE].enter(norm, original, arguments)


def _block(number: int) -> Around:
    def around(block: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return block.__dict__[_STATE].block(number, block, original, arguments)

    return around


def _show(name: str) -> Around:
    def around(norm: Any, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return norm.__dict__[_STATE].show(name, original, arguments)

    return around
