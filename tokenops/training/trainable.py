"""Train a pipeline inside a frozen model, as one module for the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenops.budget import Budget
from tokenops.errors import TokenOpsError
from tokenops.integrations.attaching import attach
from tokenops.integrations.families import Family
from tokenops.integrations.visual import Decision
from tokenops.pipeline import Pipeline
from tokenops.training.annealed import Annealed
from tokenops.training.losses import soft_hard_bce, soft_hard_gap
from tokenops.training.schedules import Schedule, linear


class Trainable(nn.Module):
    r"""A frozen model with a pipeline that learns.

    .. math:: L = \mathrm{CE} + \lambda(p)\,\mathrm{BCE}(m_\text{soft}, m_\text{hard})

    with p the training progress set by :class:`~tokenops.training.Curriculum` (VisionSelector, arXiv
    2510.16598, §3.3). Entries that a sampler draws as 0 or 1 add nothing to the second term. The model is
    attached and frozen on construction; ``remove()`` ends both. Only the pipeline's parameters are parameters
    of this module, so optimizers, DistributedDataParallel and checkpoints see nothing else. ``train()`` and
    ``eval()`` switch model and pipeline together: soft masks in training, hard selection in evaluation.

    The task loss is the mean over label tokens; the auxiliary loss of a sample is the mean over its images,
    weighted by the sample's share of the label tokens. Both are sums over samples once the number of label
    tokens is known, so under the Trainer's gradient accumulation 1 step of 4 rows and 4 steps of 1 row give
    the same gradient.

    Args:
        model: a transformers model of a known family; its parameters are frozen.
        pipeline: what to train; at least one parameter outside a route must require a gradient. Those of a
            route are frozen.
        curriculum: weight of the auxiliary loss, progress in [0, 1] -> float.
        keep: budget in training, progress in [0, 1] -> keep, for every component outside a route that
            declares a :class:`~tokenops.budget.Budget`; their own hold in evaluation. None trains at them.
        family: as in :func:`tokenops.attach`.

    Raises:
        TokenOpsError: nothing to train, a curriculum or keep that is no function, or whatever ``attach``
            refuses; the model is unchanged then. In training: a pipeline that selects without a soft mask.

    >>> from tokenops import pocket
    >>> from tokenops.recipes import visionselector
    >>> from tokenops.selectors.relaxations import soft_topk
    >>> from tokenops.selectors.scorers import LearnedScorer
    >>> model, processor = pocket.load()
    >>> pipeline = visionselector(LearnedScorer(128), keep=0.2, relax=soft_topk)
    >>> trainable = Trainable(model.train(), pipeline)
    >>> scene = pocket.scenes(1, "train", seed=1)[0]
    >>> batch = processor(images=scene.image, text=scene.questions()[0].prompt, return_tensors="pt")
    >>> labels = batch["input_ids"].clone()
    >>> labels[:, :-1] = -100
    >>> trainable(labels=labels, **batch)["loss"].backward()
    >>> bool(pipeline.stages["after_projector"].selector.scorer.k_proj.bias.grad.any())
    True
    >>> trainable.config is model.config, trainable.train(False).training
    (True, False)
    >>> trainable.remove()
    """

    # read by the Trainer: it passes num_items_in_batch, counted without the first label of a row, and warns
    # about keys missing on resume only
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"
    _keys_to_ignore_on_save = None
    # outside the module tree: not in state_dict, not in parameters()
    model: Any

    def __init__(
        self,
        model: nn.Module,
        pipeline: Pipeline,
        *,
        curriculum: Schedule | None = None,
        keep: Schedule | None = None,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(pipeline, Pipeline):
            raise TokenOpsError("Trainable", "a Pipeline", type(pipeline).__name__)
        route = pipeline.stages.get("layers")
        routed = set() if route is None else set(route.parameters())
        trained = [p for p in pipeline.parameters() if p.requires_grad and p not in routed]
        if not trained:
            raise TokenOpsError("Trainable", "a pipeline with parameters to train", repr(pipeline))
        if curriculum is not None and not callable(curriculum):
            raise TokenOpsError("Trainable", "curriculum as a function of progress", repr(curriculum))
        if keep is not None and not callable(keep):
            raise TokenOpsError("Trainable", "keep as a function of progress", repr(keep))
        if keep is not None and not _budgeted(pipeline):
            raise TokenOpsError("Trainable", "a component with a budget, for keep to set", repr(pipeline))
        self.handle = attach(model, pipeline, family=family)
        self.pipeline = pipeline
        self.__dict__["model"] = model
        self.__dict__["_thawed"] = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)
        # a route chooses hard and is calibrated, not trained
        for parameter in routed:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.curriculum: Schedule = linear(0.1, 2.0) if curriculum is None else curriculum
        self.keep = keep
        self.progress = 0.0
        self.metrics: dict[str, Tensor] = {}
        self.train(model.training)

    def remove(self) -> None:
        """Detach the pipeline and let the model's parameters require gradients as before.

        Raises:
            TokenOpsError: something else wrapped the model since; nothing changes then.
        """
        self.handle.remove()
        for parameter in self.__dict__["_thawed"]:
            parameter.requires_grad_(True)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    def train(self, mode: bool = True) -> Trainable:
        """Soft selection on or off, in model and pipeline."""
        super().train(mode)
        self.model.train(mode)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Trainable:
        self.model._apply(fn)
        return super()._apply(fn, recurse)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Checkpoint the model's layers (non-reentrant: the inputs of frozen layers carry the gradient).

        Raises:
            TokenOpsError: ``use_reentrant=True``.
        """
        kwargs = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if kwargs["use_reentrant"]:
            raise TokenOpsError("Trainable", "checkpointing with use_reentrant=False", "True")
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        if enable is None:  # older transformers know one name only
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs, **options)
        else:
            enable(activation_checkpointing_kwargs=kwargs, **options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of :meth:`activation_checkpointing_enable`.

        Raises:
            TokenOpsError: ``use_reentrant=True``.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def forward(
        self, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Loss and logits of one batch.

        ``labels`` (b l) as in transformers, -100 at visual placeholders and where nothing is predicted;
        ``num_items_in_batch`` label tokens of the whole accumulated batch; ``inputs`` what the model takes.
        """
        if labels is None:
            with self._budget():
                return {"logits": self.model(**inputs).logits}
        self._check_labels(labels, inputs.get("input_ids"))
        for module in self.pipeline.modules():
            if isinstance(module, Annealed):
                module.progress = self.progress
        before = self.handle.decision
        with self._budget():
            logits = self.model(**{"use_cache": False, **inputs}).logits
        # the handle keeps the last decision there was: a batch of text only makes none
        decision = None if self.handle.decision is before else self.handle.decision
        targets = labels[:, 1:].to(logits.device)
        counts = (targets != -100).sum(1)
        total = counts.sum() if num_items_in_batch is None else num_items_in_batch
        summed = cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        self.metrics = {"task_loss": summed.detach() / counts.sum().clamp(min=1)}
        loss = summed / _at_least_one(total)
        if self.training:
            loss = loss + self._auxiliary_loss(decision, counts, total)
        return {"loss": loss, "logits": logits}

    @contextmanager
    def _budget(self) -> Iterator[None]:
        """The budget of now in every component that has one, while training."""
        if self.keep is None or not self.training:
            yield
            return
        now, own = self.keep(self.progress), [(module, module.keep) for module in _budgeted(self.pipeline)]
        try:
            for module, _ in own:
                module.keep = now
            yield
        finally:
            for module, keep in own:
                module.keep = keep

    def _check_labels(self, labels: Tensor, ids: Tensor | None) -> None:
        """A visual token is predicted by nothing that stays."""
        for kind, token in self.handle.tokens.items() if ids is not None else ():
            if bool(((ids == token) & (labels != -100)).any()):
                raise TokenOpsError("Trainable", f"labels of -100 at {kind} placeholders", "other labels")

    def _auxiliary_loss(self, decision: Decision | None, counts: Tensor, total: Tensor | int) -> Tensor:
        """Weighted BCE of a decision; ``counts`` (b) label tokens of each sample, ``total`` of all."""
        if decision is None:
            # no image, no gradient; every parameter still takes part, as backward and DDP expect
            return torch.stack([0.0 * p.float().sum() for p in self.parameters() if p.requires_grad]).sum()
        if decision.chosen.gate is None:
            raise TokenOpsError("Trainable", "a soft mask in training (relax=soft_topk)", repr(self.pipeline))
        soft, hard, mask = decision.chosen.gate, decision.chosen.mask, decision.mask
        images = decision.rows.bincount(minlength=counts.shape[0])
        share = counts.to(images.device) / images.clamp(min=1) / _at_least_one(total)
        # a mask drawn hard differs from the best k by chance; there is no gap to close
        apart = torch.where((soft == 0) | (soft == 1), hard.to(soft.dtype), soft)
        bce = soft_hard_bce(apart, hard, mask, weight=share[decision.rows])
        weight = self.curriculum(self.progress)
        self.metrics |= {
            "soft_hard_bce": soft_hard_bce(apart, hard, mask).detach(),
            "soft_hard_gap": soft_hard_gap(soft, hard, mask).detach(),
            "curriculum": torch.tensor(weight),
        }
        return weight * bce


def _at_least_one(total: Tensor | int) -> Tensor | int:
    return total.clamp(min=1) if isinstance(total, Tensor) else max(1, total)


def _budgeted(pipeline: Pipeline) -> list[Any]:
    """The components outside a route that declare a budget."""
    route = pipeline.stages.get("layers")
    routed = set() if route is None else set(route.modules())
    found = (m for m in pipeline.modules() if isinstance(getattr(type(m), "keep", None), Budget))
    return [module for module in found if module not in routed]
