"""What a Trainable is as a module: only the pipeline, around a frozen model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import tiny
from torch import nn
from training import kit

import tokenops
from tokenops import Pipeline, Prune, TokenOpsError
from tokenops.integrations import low_rank_factors
from tokenops.recipes import alvts, random, visionselector
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer, feature_norm
from tokenops.training import Trainable

NAMES = [
    f"pipeline.after_projector.selector.scorer.{p}.{w}"
    for p in ("q_proj", "k_proj")
    for w in ("weight", "bias")
]


def flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


def own(module: nn.Module) -> list[list[str]]:
    """Attribute names of every instance: what an attached pipeline would add to."""
    return [sorted(m.__dict__) for m in module.modules()]


def test_parameters_and_state_are_the_pipeline_only() -> None:
    t = kit.trainable()
    assert [name for name, _ in t.named_parameters()] == NAMES
    assert list(t.state_dict()) == NAMES
    assert list(dict(t.named_children())) == ["pipeline"]
    assert all(p.requires_grad for p in t.parameters())
    assert not any(flags(t.model))
    assert t.config is t.model.config
    assert repr(t.handle).endswith("attached)")


@pytest.mark.parametrize("gate", ["attention", "multiply"])
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_only_the_scorer_moves(family: str, gate: str) -> None:
    t = kit.trainable(family, gate=gate)
    model, scorer = {k: v.clone() for k, v in t.model.state_dict().items()}, kit.weights(t)
    optimizer = torch.optim.AdamW(t.parameters(), lr=1e-2)
    for batch in (tiny.batch(kit.rows(family)), tiny.batch(kit.many(family, 2))):
        t(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(v, model[k]) for k, v in t.model.state_dict().items())
    assert all(p.grad is None for p in t.model.parameters())
    # the bias of q shifts all scores of an image alike, which Top-K does not see
    moved = {name for name, value in t.state_dict().items() if not torch.equal(value, scorer[name])}
    assert moved >= set(NAMES) - {NAMES[1]}


def test_train_and_eval_switch_both() -> None:
    t = kit.trainable()
    for mode in (False, True, False):
        assert t.train(mode) is t
        assert {m.training for m in [*t.modules(), *t.model.modules()]} == {mode}
    assert t.train().eval() is t
    assert not t.model.training
    assert not t.pipeline.training


def test_moving_it_moves_the_model() -> None:
    t = kit.trainable()
    assert t.to(torch.float64) is t
    assert {p.dtype for p in [*t.parameters(), *t.model.parameters()]} == {torch.float64}
    batch = {k: v.double() if v.is_floating_point() else v for k, v in tiny.batch(kit.rows("llava")).items()}
    assert t(**batch)["logits"].dtype == torch.float64
    t.bfloat16()
    assert {p.dtype for p in [*t.parameters(), *t.model.parameters()]} == {torch.bfloat16}
    t.to("meta")
    assert all(v.is_meta for v in [*t.parameters(), *t.model.state_dict().values(), *t.model.buffers()])


def test_a_frozen_part_of_the_pipeline_stays_frozen() -> None:
    pipeline = kit.pipeline()
    pipeline.stages["after_projector"].selector.scorer.k_proj.requires_grad_(False)
    t = Trainable(tiny.llava(), pipeline).train()
    t(**tiny.batch(kit.rows("llava")))["loss"].backward()
    assert sorted(kit.gradients(t)) == sorted(NAMES[:2])


def test_remove_restores_the_model() -> None:
    model = tiny.llava()
    inputs = tiny.batch(kit.rows("llava"))
    plain = model(**inputs, use_cache=False).logits
    before = own(model)
    t = Trainable(model, kit.pipeline()).eval()
    assert not torch.equal(t(**inputs)["logits"], plain)
    t.handle.remove()
    assert own(model) == before
    assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    again = Trainable(model, kit.pipeline())
    again.handle.remove()


def frozen() -> Pipeline:
    return kit.pipeline().requires_grad_(False)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no parameters": (lambda: random(0.5), {}, "parameters to train"),
    "nothing at all": (Pipeline, {}, "parameters to train"),
    "all frozen": (frozen, {}, "parameters to train"),
    "no pipeline": (lambda: LearnedScorer(kit.WIDTH), {}, "a Pipeline, got LearnedScorer"),
    "a function": (lambda: feature_norm, {}, "a Pipeline, got function"),
    "another width": (lambda: visionselector(LearnedScorer(kit.WIDTH + 1)), {}, "49"),
    "a number as curriculum": (kit.pipeline, {"curriculum": 0.5}, "function of progress, got 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_the_model_alone(case: str) -> None:
    make, options, words = REFUSED[case]
    model = tiny.llava()
    before = own(model), flags(model)
    with pytest.raises(TokenOpsError, match=words):
        Trainable(model, make(), **options)
    assert (own(model), flags(model)) == before
    Trainable(model, kit.pipeline()).handle.remove()


def test_other_models_and_second_pipelines_are_refused() -> None:
    with pytest.raises(TokenOpsError):
        Trainable(nn.Linear(2, 2), kit.pipeline())
    t = kit.trainable()
    with pytest.raises(TokenOpsError, match="attached already"):
        Trainable(t.model, kit.pipeline())
    assert t(**tiny.batch(kit.rows("llava")))["loss"].requires_grad


def test_a_pipeline_without_a_soft_mask_says_so() -> None:
    t = kit.trainable(relax=None)
    with pytest.raises(TokenOpsError, match="relax=soft_topk"):
        t(**tiny.batch(kit.rows("llava")))
    assert t.eval()(**tiny.batch(kit.rows("llava")))["loss"].isfinite()


def test_a_scorer_of_anyone() -> None:
    """Any module with parameters trains: a linear score here."""

    class Linear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).squeeze(-1)

    from tokenops.selectors.relaxations import soft_topk

    pipeline = Pipeline(after_projector=Prune(TopK(Linear(kit.WIDTH, 1), 0.5, soft_topk), scope="sample"))
    t = Trainable(tiny.llava(), pipeline).train()
    t(**tiny.batch(kit.rows("llava")))["loss"].backward()
    assert pipeline.stages["after_projector"].selector.scorer.weight.grad.norm() > 0


def test_a_route_is_calibrated_not_trained() -> None:
    model = tiny.MODELS["llava"]()
    factors = low_rank_factors(model, 4)
    with pytest.raises(TokenOpsError, match="parameters to train"):
        Trainable(model, alvts(factors, 0.5))
    made = Trainable(model, kit.pipeline() | alvts(factors, 0.5)).train()
    out = made(**kit.row("llava", [0], 1, 2))
    out["loss"].backward()
    trained = [p for p in made.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)
    assert not any(p.requires_grad for p in factors.parameters())
    made.remove()


def test_a_budget_of_training_holds_in_training_only() -> None:
    """Drawn anew for every step, taken back after the forward pass, whatever happens in it."""
    made = kit.pipeline(keep=0.3)
    selector, seen = made.stages["after_projector"].selector, []
    selector.register_forward_hook(lambda module, *_: seen.append(module.keep))
    t = Trainable(tiny.llava(), made, keep=lambda p: 0.5 - 0.2 * p).train()
    batch = tiny.batch(kit.rows("llava"))
    for t.progress in (0.0, 0.5):
        t(**batch)["loss"].backward()
        assert selector.keep == 0.3
    t.eval()
    t(**batch)
    assert set(seen[-3:]) == {0.5, 0.4, 0.3}
    t.train()
    t.keep = lambda p: 7.5
    with pytest.raises(TokenOpsError, match="keep"):
        t(**batch)
    assert selector.keep == 0.3
    t.remove()


def test_a_budget_that_is_no_function() -> None:
    model = tiny.llava()
    with pytest.raises(TokenOpsError, match="keep as a function of progress"):
        Trainable(model, kit.pipeline(), keep=0.2)  # type: ignore[arg-type]
    assert tokenops.integrations.attached(model) is None
    unbudgeted = Pipeline(after_projector=Prune(Alternate()))
    with pytest.raises(TokenOpsError, match="a component with a budget"):
        Trainable(model, unbudgeted, keep=lambda p: 0.2)
    assert tokenops.integrations.attached(model) is None


class Alternate(nn.Module):
    """A selector with something to train and no budget."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> tokenops.Selection:
        return tokenops.Selection.from_mask(mask & (torch.arange(x.shape[1]) % 2 == 0))
