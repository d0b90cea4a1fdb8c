"""The door: which kind of model it is, and who knows how to attach to it."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

from tokenops.errors import TokenOpsError
from tokenops.integrations.families import Family, unwrap
from tokenops.integrations.handles import AttachedHandle
from tokenops.integrations.vit import attach_vit, attached_vit, is_timm
from tokenops.pipeline import Pipeline

if TYPE_CHECKING:
    from tokenops.integrations.attaching import Handle


def attach(model: nn.Module, pipeline: Pipeline, *, family: Family | None = None) -> Handle | AttachedHandle:
    """Run ``pipeline`` inside ``model`` until the handle is removed.

    ``generate``, forward, loss, caches and checkpoints keep working; ``keep=1.0`` is bit-identical. Hidden
    states and logits come back at the original length: a dropped position carries the state of the last kept
    token before it, so labels at visual positions must be -100. Attention maps, if asked for, are those of
    the kept tokens. Features that the caller has merged into ``inputs_embeds`` are not seen as visual. A
    route whose scores read the text (ALVTS, FastV, PyramidDrop) sees all text of the call, answers too.
    Deep copies carry a pipeline of their own; ``state_dict`` and ``save_pretrained`` give the plain model;
    ``pickle`` and ``torch.save`` of the model itself raise TokenOpsError, and so does ``torch.jit.trace`` of
    timm's.

    Args:
        model: a transformers model of a known family (LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL), or a vision
            transformer of timm (see :func:`~tokenops.integrations.vit.attach_vit`); also inside PEFT or
            ``torch.compile``.
        pipeline: what happens where.
        family: how to find the parts of a model this library does not know.

    Raises:
        TokenOpsError: unknown family, attached already, a signal the model cannot give, a component on
            another device or of another width; the model is untouched then.

    >>> from tokenops import pocket, recipes
    >>> model, processor = pocket.load()
    >>> scene = pocket.scenes(1, "heldout", seed=1)[0]
    >>> inputs = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")
    >>> with attach(model, recipes.random(keep=0.25)) as handle:
    ...     logits = model(**inputs).logits
    >>> handle.trace, logits.shape[1] == inputs["input_ids"].shape[1]
    ((Trace(after_projector: image 0 of sample 0, 36 of 144 tokens),), True)
    """
    if not isinstance(pipeline, Pipeline):
        raise TokenOpsError("attach", "a Pipeline", type(pipeline).__name__)
    if is_timm(unwrap(model)):
        if family is not None:
            raise TokenOpsError("attach", "no family for a model of timm", repr(family.name))
        return attach_vit(model, pipeline)
    return transformers_side().attach(model, pipeline, family=family)


def attached(model: nn.Module) -> Handle | AttachedHandle | None:
    """The handle of the pipeline a model runs, None without one; also of a deep copy of an attached model.

    Raises:
        TokenOpsError: something that is no model, or transformers is missing where it is needed.

    >>> from tokenops import pocket, recipes
    >>> model, _ = pocket.load()
    >>> with attach(model, recipes.random(keep=0.25)):
    ...     print(attached(model).pipeline)
    Pipeline(after_projector=Prune(TopK(RandomScore(seed=0), keep=0.25), scope='image', gate='attention'))
    >>> attached(model) is None
    True
    """
    if is_timm(unwrap(model)):
        return attached_vit(model)
    return transformers_side().attached(model)


def transformers_side() -> ModuleType:
    """What knows the models of transformers.

    Raises:
        TokenOpsError: transformers is not installed.
    """
    try:
        from tokenops.integrations import attaching
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise TokenOpsError("attach", "transformers: pip install 'tokenops[hf]'", "not installed") from error
    return attaching
