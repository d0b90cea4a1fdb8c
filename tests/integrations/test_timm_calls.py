"""What a routed vision transformer does beside a plain forward: heads, intermediates, training, compiling."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from integrations import vit
from torch import Tensor, nn

import tokenops
from tokenops import Pipeline, Prune, recipes
from tokenops.integrations import attached, low_rank_factors
from tokenops.routers import Route, from_layer, pyramid
from tokenops.selectors import Random, TopK, UniformGrid
from tokenops.selectors.scorers import LearnedScorer, RandomScore, cls_attention, feature_norm

some = pytest.mark.parametrize(
    "family", ["registers", "distilled", "siglip", "two by two", "eva, rope by layer"]
)


def exit_at(layer: int, keep: Any, scorer: Any = feature_norm) -> Route:
    return Route(scorer, from_layer(layer, keep), fate="exit")


@some
@torch.no_grad()
def test_intermediates_keep_every_patch(family: str) -> None:
    model = vit.model(family)
    x, p = vit.pictures(model), model.num_prefix_tokens
    route = exit_at(1, 0.5)
    want = vit.reference(model, x, route, vit.norm_score)
    with tokenops.attach(model, Pipeline(layers=route)) as handle:
        features = model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, features), "the same features, so the head gives the same logits"
        for got, state in zip(maps, want.states, strict=True):
            vit.close(got, state[:, p:].mT.reshape(3, 24, 4, 4))
        rows = model.forward_intermediates(x, [1], norm=True, output_fmt="NLC", intermediates_only=True)
        vit.close(rows[0], model.norm(want.states[1])[:, p:])
        vit.close(model.forward_head(final), model(x))
        if not family.startswith("eva"):
            both = model.forward_intermediates(x, output_dict=True)
            assert torch.equal(both["image_features"], features)
        model.forward_intermediates(x, [0], stop_early=True)
        assert handle.tokens_per_layer == (16.0, 0.0, 0.0)
        if hasattr(model, "get_intermediate_layers"):
            (last,) = model.get_intermediate_layers(x, 1, reshape=True)
            assert last.shape == (3, 24, 4, 4)


@torch.no_grad()
def test_average_pooling_is_over_what_is_left() -> None:
    model = vit.model("no class, average")
    x = vit.pictures(model)
    with tokenops.attach(model, Pipeline(layers=exit_at(1, 0.5))):
        features = model.forward_features(x)
        assert features.shape == (3, 8, 24)
        vit.close(model(x), model.head(model.fc_norm(features.mean(1))))


@some
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    """Under stochastic depth and fresh random scores, so that replayed blocks must draw alike."""
    first, second = Prune(Random(0.8)), Route(RandomScore(None), from_layer(1, 0.5), fate="exit")
    found = []
    for checkpointing in (False, True):
        model = vit.model(family, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointing)
        with tokenops.attach(model, Pipeline(after_projector=first, layers=second)) as handle:
            torch.manual_seed(4)
            loss = sum(part.square().sum() for part in (model(vit.pictures(model)) for _ in range(2)))
            traces = [t.index.tolist() for t in handle.trace]
            loss.backward()
            assert [t.index.tolist() for t in handle.trace] == traces
        found.append((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (plain, want), (again, got) = found
    assert torch.equal(plain, again)
    assert len(got) == len(want) > 20
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_reference() -> None:
    route = Route(feature_norm, 0.5)
    found = []
    for routed in (True, False):
        model = vit.model("layer scale, qk norm")
        x = vit.pictures(model)
        if routed:
            with tokenops.attach(model, Pipeline(layers=route)):
                out = model(x)
        else:
            features = vit.reference(model, x, route, vit.norm_score).features
            assert features is not None
            out = model.forward_head(features)
        out.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_reentrant_checkpoints_are_refused() -> None:
    from timm.layers import set_reentrant_ckpt

    model = vit.model().train()
    model.set_grad_checkpointing()
    set_reentrant_ckpt(True)
    try:
        with tokenops.attach(model, Pipeline(layers=Route(feature_norm, 0.5))):
            out = model(vit.pictures(model)).sum()
            with pytest.raises(tokenops.TokenOpsError, match="not reentrant"):
                out.backward()
    finally:
        set_reentrant_ckpt(False)


@pytest.mark.parametrize("family", ["plain", "siglip", "eva, rope"])
@torch.no_grad()
def test_under_autocast_and_in_half_precision(family: str) -> None:
    model = vit.model(family)
    x = vit.pictures(model)
    keep = Pipeline(layers=Route(feature_norm, 1.0), after_projector=Prune(TopK(feature_norm, 1.0)))
    half = Pipeline(layers=Route(feature_norm, 0.5), after_projector=Prune(UniformGrid(0.5)))
    for run in (lambda x: model(x), lambda x: copy_in_bf16(model)(x.bfloat16())):
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(x)
            with tokenops.attach(model, keep):
                assert torch.equal(model(x), plain)
        with tokenops.attach(model, half):
            exact = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                assert (model(x).float() - exact).abs().max() < 0.2 * exact.abs().max()
            assert (run(x).float() - exact).abs().max() < 0.2 * exact.abs().max()


def copy_in_bf16(model: Any) -> Any:
    return copy.deepcopy(model).bfloat16()


def compiled_equals_eager(model: Any, pipeline: Pipeline) -> None:
    torch._dynamo.reset()
    x = vit.pictures(model)
    with tokenops.attach(model, pipeline) as handle:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
        with torch.no_grad():
            got, kept = compiled(x), [t.index.tolist() for t in handle.trace]
            vit.close(got, model(x))
            assert [t.index.tolist() for t in handle.trace] == kept
            with torch.compiler.set_stance("fail_on_recompile"):
                vit.close(compiled(2 * x), model(2 * x))
    torch._dynamo.reset()


def test_one_graph_under_compile_for_every_image() -> None:
    model = vit.model("plain", depth=2)
    compiled_equals_eager(
        model,
        Pipeline(after_projector=Prune(TopK(feature_norm, 0.7)), layers=exit_at(1, 0.5, cls_attention)),
    )


@pytest.mark.slow
def test_scorers_that_cannot_be_compiled() -> None:
    model = vit.model("plain", depth=2)
    x = vit.pictures(model)

    def awkward(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return feature_norm(x)

    torch._dynamo.reset()
    both = Pipeline(after_projector=Prune(TopK(awkward, 0.7)), layers=exit_at(1, 0.5, awkward))
    with tokenops.attach(model, both) as handle, torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager")
        for pixels in (x, 2 * x):
            got, kept = compiled(pixels), [t.index.tolist() for t in handle.trace]
            vit.close(got, model(pixels))
            assert [t.index.tolist() for t in handle.trace] == kept
            assert len(kept) == 6


@pytest.mark.slow
@pytest.mark.parametrize("family", vit.EVERY)
def test_every_family_under_compile(family: str) -> None:
    compiled_equals_eager(vit.model(family, depth=2), Pipeline(layers=Route(feature_norm, 0.5)))


@pytest.mark.slow
def test_training_under_compile_with_checkpoints() -> None:
    model = vit.model().train()
    model.set_grad_checkpointing()
    x = vit.pictures(model)
    with tokenops.attach(model, Pipeline(layers=exit_at(1, 0.5))):
        model(x).square().sum().backward()
        want = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        torch._dynamo.reset()
        torch.compile(model, backend="aot_eager")(x).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["distilled", "eva, rope"])
@torch.no_grad()
def test_a_copy_runs_its_own_weights(family: str) -> None:
    model = vit.model(family)
    x = vit.pictures(model)
    with tokenops.attach(model, Pipeline(layers=exit_at(1, 0.5))) as handle:
        want = model(x)
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        model(x)
        kept = [t.index.tolist() for t in handle.trace]
        changed = twin(x)
        assert not torch.allclose(changed, want)
        assert [t.index.tolist() for t in handle.trace] == kept
        own = attached(twin)
        assert own is not None
        assert own.model is twin
        assert own.tokens_per_layer == (16.0, 8.0, 8.0)
        own.remove()
        assert torch.equal(model(x), want)
    assert not torch.equal(model(x), want)


@torch.no_grad()
def test_threads_do_not_see_each_other() -> None:
    model = vit.model(dynamic_img_size=True)
    sizes = [(16, 16), (8, 20), (24, 24), (12, 8)]
    with tokenops.attach(model, Pipeline(layers=Route(feature_norm, 0.5))) as handle:
        want = [model(vit.pictures(model, size=size)) for size in sizes]
        wrong: list[Any] = []

        def work(number: int) -> None:
            for _ in range(5):
                got = model(vit.pictures(model, size=sizes[number]))
                n = sizes[number][0] * sizes[number][1] // 16
                if not torch.equal(got, want[number]) or handle.trace[0].n != n:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong


def test_a_learned_scorer_and_training_mode() -> None:
    model = vit.model().train()
    x = vit.pictures(model)
    with tokenops.attach(model, recipes.visionselector(LearnedScorer(24), keep=0.5)) as handle:
        model(x).sum().backward()
        assert handle.pipeline.training
        model.eval()
        model(x)
        assert not handle.pipeline.training


@torch.no_grad()
def test_low_rank_factors_of_a_vision_transformer() -> None:
    """At full rank, with heads apart, they score by the block's own attention."""
    model = vit.model("registers")
    x = vit.pictures(model)
    factors = low_rank_factors(model, 24, softmax="head")

    def score(block: Any, x: Tensor, seen: Tensor | None) -> Tensor:
        own = vit.attention_map(block, x, torch.ones(x.shape[:2], dtype=torch.bool))
        return own[:, :4].mean(1) * own[:, 4:].mean(1)

    pipeline = recipes.alvts(factors, 0.5)
    route = pipeline.stages["layers"]
    assert isinstance(route, Route)
    want = vit.reference(model, x, route, score)
    with tokenops.attach(model, pipeline):
        vit.close(model.forward_features(x), want.features)
    assert len(low_rank_factors(nn.DataParallel(model).module, 4, layers=[1])) == 1


@pytest.mark.parametrize("family", ["layer scale, qk norm", "parallel", "eva"])
def test_low_rank_factors_refuse_what_is_no_linear_map(family: str) -> None:
    with pytest.raises(tokenops.TokenOpsError, match="low_rank_factors"):
        low_rank_factors(vit.model(family), 4)


@torch.no_grad()
def test_a_pyramid_leaves_step_by_step() -> None:
    model = vit.model("siglip")
    with tokenops.attach(
        model, Pipeline(layers=Route(feature_norm, pyramid((1, 2), (0.5, 0.25)), fate="exit"))
    ) as h:
        model(vit.pictures(model))
        assert h.tokens_per_layer == (16.0, 8.0, 4.0)
        early, late = ([t for t in h.trace if t.layer == n] for n in (1, 2))
    for before, after in zip(early, late, strict=True):
        assert (before.n, before.k, after.n, after.k) == (16, 8, 8, 4)
        assert torch.equal(after.candidates, before.index)
        assert set(after.candidates[after.scores.topk(4).indices].tolist()) == set(after.index.tolist())
