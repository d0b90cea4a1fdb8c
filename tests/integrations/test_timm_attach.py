"""What is refused before anything is attached to a timm model, and what is left after removal: nothing."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
import timm
import torch
from integrations import tiny, vit
from torch import Tensor, nn

import tokenops
from tokenops import Merge, Pipeline, Prune, TokenOpsError, recipes
from tokenops.integrations import FAMILIES, attached
from tokenops.routers import LowRankAttention, Route, from_layer, per_layer
from tokenops.selectors import Random, TopK, UniformGrid
from tokenops.selectors.mergers import nearest_kept
from tokenops.selectors.relaxations import soft_topk
from tokenops.selectors.scorers import (
    LearnedScorer,
    cls_attention,
    feature_norm,
    last_attention,
    received_attention,
)

HALF = Pipeline(layers=Route(feature_norm, 0.5))


def wrapped(model: nn.Module) -> list[str]:
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key in vars(module)
        if key.startswith("_tokenops") or key in ("forward", "forward_features", "forward_intermediates")
    ]


def refused(model: Any, pipeline: Pipeline, what: str) -> None:
    with pytest.raises(TokenOpsError, match=what):
        tokenops.attach(model, pipeline)
    assert not wrapped(model)
    assert attached(model) is None


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "convnext_atto", "naflexvit_base_patch16_gap"]
)
def test_other_models_of_timm_are_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=2)
    refused(model, HALF, f"VisionTransformer, Eva .*got {type(model).__name__}")


def test_unknown_blocks_are_refused_by_name() -> None:
    class Mine(nn.Module):
        def __init__(self, dim: int, **_: Any) -> None:
            super().__init__()
            self.linear = nn.Linear(dim, dim)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    refused(vit.model(block_fn=Mine), HALF, "blocks among Block, .*got Mine")


def test_a_block_of_ones_own_that_is_one_of_timms_runs() -> None:
    from timm.models.vision_transformer import Block

    class Mine(Block):
        pass

    model = vit.model(block_fn=Mine)
    with tokenops.attach(model, HALF) as handle:
        model(vit.pictures(model))
        assert handle.tokens_per_layer == (8.0, 8.0, 8.0)


@pytest.mark.parametrize(
    ("family", "pipeline", "what"),
    [
        ("plain", recipes.fastv(0.5), "no text.*last_attention"),
        ("plain", recipes.pyramiddrop((0.5, 0.2), layers=(1, 2)), "no text.*next_attention"),
        ("plain", Pipeline(layers=Route(last_attention, 0.5)), "no text"),
        ("plain", recipes.cls_attention(0.5), "no attention before the first block"),
        ("plain", Pipeline(layers=Route(cls_attention, 0.5)), "from block 1 on"),
        ("siglip", Pipeline(layers=Route(cls_attention, from_layer(1, 0.5))), "cls_attention"),
        ("eva, rope", Pipeline(layers=Route(received_attention, from_layer(1, 0.5))), "received_attention"),
        ("parallel", Pipeline(layers=Route(received_attention, from_layer(1, 0.5))), "received_attention"),
        ("differential", Pipeline(layers=Route(cls_attention, from_layer(1, 0.5))), "cls_attention"),
        ("plain", Pipeline(layers=Route(feature_norm, from_layer(3, 0.5))), "a route for 3 layers"),
        ("plain", Pipeline(layers=Route(feature_norm, per_layer([0.5, 0.5]))), "a route for 3 layers"),
        ("plain", Pipeline(layers=Route(LearnedScorer(23), 0.5)), "23"),
        ("plain", Pipeline(layers=Route({0: LowRankAttention(24, 2, heads=2)}, 0.5)), "a scorer for layer 1"),
        ("plain", Pipeline(layers=Route(lambda x: x.nonsense, 0.5)), "scorer of block 0"),
        ("plain", Pipeline(layers=nn.Linear(2, 2)), "a Route at layers, got Linear"),
        ("plain", Pipeline(after_projector=Route(feature_norm, 0.5)), "a Prune stage or a Merge stage"),
        ("plain", recipes.visionselector(LearnedScorer(48), 0.5), "24"),
        ("plain", Pipeline(layers=Route(LearnedScorer(24).to("meta"), 0.5)), "layers on cpu"),
    ],
)
def test_pipelines_that_cannot_run_are_refused(family: str, pipeline: Pipeline, what: str) -> None:
    refused(vit.model(family), pipeline, what)


def test_arguments_of_another_kind_are_refused() -> None:
    model = vit.model()
    with pytest.raises(TokenOpsError, match="a Pipeline, got Route"):
        tokenops.attach(model, Route(feature_norm, 0.5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TokenOpsError, match="no family"):
        tokenops.attach(model, HALF, family=FAMILIES["llava"])
    assert not wrapped(model)


def test_attaching_twice_is_refused_and_removal_leaves_nothing() -> None:
    model = vit.model()
    x, keys = vit.pictures(model), list(model.state_dict())
    plain = model(x)
    both = Pipeline(
        after_projector=Prune(UniformGrid(0.5)), layers=Route(cls_attention, from_layer(1, 0.3), fate="exit")
    )
    handle = tokenops.attach(model, both)
    assert repr(handle) == f"Handle(VisionTransformer, {both!r}, attached)"
    assert handle.trace == handle.tokens_per_layer == ()
    found = attached(model)
    assert found is not None
    assert found.pipeline is both
    with pytest.raises(TokenOpsError, match="attached already"):
        tokenops.attach(model, HALF)
    assert not torch.equal(model(x), plain)
    assert list(model.state_dict()) == keys
    handle.remove()
    handle.remove()
    assert not wrapped(model)
    assert torch.equal(model(x), plain)
    pickle.loads(pickle.dumps(model))


def test_an_error_on_the_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenops.integrations.vit import attaching

    model, done = vit.model(), []

    def failing(module: nn.Module, method: str, around: Any) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(method)
        real(module, method, around)

    real = attaching.wrap
    monkeypatch.setattr(attaching, "wrap", failing)
    with pytest.raises(KeyboardInterrupt):
        tokenops.attach(model, HALF)
    assert len(done) == 4
    assert not wrapped(model)


def test_removal_is_last_in_first_out() -> None:
    model = vit.model()
    handle = tokenops.attach(model, HALF)
    block = model.blocks[1]
    ours = block.forward
    block.forward = functools.wraps(ours)(lambda *args, **kwargs: ours(*args, **kwargs))
    with pytest.raises(TokenOpsError, match="a later wrapper"):
        handle.remove()
    assert handle.attached
    block.forward = ours
    handle.remove()
    assert not wrapped(model)


def test_an_earlier_wrapper_is_called_and_restored() -> None:
    model, seen = vit.model(), []
    block = model.blocks[1]
    theirs = block.forward

    def forward(x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        seen.append(x.shape[1])
        return theirs(x, attn_mask, is_causal)

    block.forward = forward
    with tokenops.attach(model, HALF):
        model(vit.pictures(model))
    assert seen == [9]
    assert block.forward is forward


@torch.no_grad()
def test_calls_that_cannot_be_right_are_refused() -> None:
    model = vit.model()
    x = vit.pictures(model)
    with tokenops.attach(model, HALF):
        with pytest.raises(TokenOpsError, match="a block called by itself"):
            model.blocks[0](torch.zeros(1, 17, 24))
        with pytest.raises(TokenOpsError, match="attn_mask"):
            model(x, attn_mask=torch.ones(17, 17, dtype=torch.bool))
        model(x)
    causal = model(x, is_causal=True)
    with tokenops.attach(model, Pipeline(layers=Route(feature_norm, 1.0))):
        assert torch.equal(model(x, is_causal=True), causal)


def test_soft_masks_and_patch_dropout_are_refused_in_training() -> None:
    model = vit.model(patch_drop_rate=0.5).train()
    x = vit.pictures(model)
    with tokenops.attach(model, HALF):
        with pytest.raises(TokenOpsError, match="no patch dropout"):
            model(x)
        model.eval()(x)
    model = vit.model().train()
    soft = Pipeline(after_projector=Prune(TopK(LearnedScorer(24), 0.5, soft_topk)))
    with tokenops.attach(model, soft):
        with pytest.raises(TokenOpsError, match="without a relaxation"):
            model(x)
        model.eval()(x)


def test_selectors_that_keep_different_numbers_are_refused() -> None:
    model = vit.model()

    def ragged(x: Tensor, *, mask: Tensor) -> tokenops.Selection:
        count = torch.arange(len(x)) + 3
        return tokenops.Selection.from_mask(mask & (torch.arange(x.shape[1]) < count[:, None]))

    with tokenops.attach(model, Pipeline(after_projector=Prune(ragged))):
        with pytest.raises(TokenOpsError, match=r"as many patches in every image, got \[3, 4, 5\]"):
            model(vit.pictures(model))
        assert model(vit.pictures(model, rows=1)).shape == (1, 5)


@torch.no_grad()
def test_traces_say_what_ran() -> None:
    model = vit.model("distilled", img_size=(16, 28))
    x = vit.pictures(model)
    merge = Merge(Random(0.5), nearest_kept)
    with tokenops.attach(model, Pipeline(after_projector=merge, layers=Route(feature_norm, 7))) as handle:
        model(x)
        before, layers = handle.trace[:3], handle.trace[3:]
        assert handle.tokens_per_layer == (7.0, 7.0, 7.0)
    assert [(t.stage, t.layer, t.image, t.n, t.k) for t in before] == [
        ("after_projector", None, row, 28, 14) for row in range(3)
    ]
    assert [(t.layer, t.image, t.n, t.k) for t in layers] == [
        (layer, row, 14, 7) for layer in range(3) for row in range(3)
    ]
    for t in layers:
        first = before[t.image]
        assert set(t.index.tolist()) <= set(first.index.tolist())
        assert torch.equal(t.mass, first.mass[torch.isin(first.index, t.index)])
        assert torch.equal(t.positions, t.index + 2)
        assert torch.equal(t.grid[:, 1:], torch.stack([t.index // 7, t.index % 7], 1))
        best = first.index[t.scores.argsort(descending=True)[:7]]
        assert sorted(best.tolist()) == t.index.tolist()


@torch.no_grad()
def test_compiled_and_wrapped_models_are_unwrapped() -> None:
    model = vit.model()
    compiled: Any = torch.compile(model, backend="eager")
    with tokenops.attach(compiled, HALF) as handle:
        assert handle.model is model
        assert attached(compiled) is not None
    with pytest.raises(TokenOpsError, match="DistributedDataParallel"):
        tokenops.attach(nn.DataParallel(model), HALF)


def test_models_of_transformers_go_the_other_way() -> None:
    with tokenops.attach(tiny.llava(), recipes.random(0.5)) as handle:
        assert type(handle).__name__ == "Handle"
    with pytest.raises(TokenOpsError, match="a known family"):
        tokenops.attach(nn.Linear(2, 2), recipes.random(0.5))
