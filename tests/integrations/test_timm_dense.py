"""Routed vision transformers equal a slow reference that hides tokens with masks, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import vit
from torch import Tensor

import tokenops
from tokenops import Merge, Pipeline, Prune
from tokenops.routers import LowRankAttention, Route, from_layer, per_layer, pyramid
from tokenops.selectors import Random, TopK, UniformGrid
from tokenops.selectors.mergers import Contextual, bipartite, nearest_kept
from tokenops.selectors.scorers import RandomScore, cls_attention, feature_norm, received_attention

families = pytest.mark.parametrize("family", vit.EVERY)


def full(handle: Any, layer: int, n: int) -> Tensor:
    """(b n) True at the patches that ran, from the trace."""
    traces = [t for t in handle.trace if t.layer == layer]
    kept = torch.zeros(len(traces), n, dtype=torch.bool)
    for t in traces:
        kept[t.image, t.index] = True
    return kept


@families
@pytest.mark.parametrize("keep", [1.0, 16, 100])
def test_keeping_everything_is_bit_identical(family: str, keep: Any) -> None:
    model = vit.model(family)
    x = vit.pictures(model)
    if keep == 16 and family == "oblong":
        keep = 28
    plain, features = model(x), model.forward_features(x)
    stage = Pipeline(after_projector=Prune(TopK(feature_norm, keep)), layers=Route(feature_norm, keep))
    with tokenops.attach(model, stage):
        assert torch.equal(model(x), plain)
        assert torch.equal(model.forward_features(x), features)
    with tokenops.attach(model, Pipeline(layers=Route(feature_norm, keep, fate="exit"))):
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), plain)


@families
@pytest.mark.parametrize("fate", ["skip", "exit"])
@torch.no_grad()
def test_routes_equal_the_reference(family: str, fate: str) -> None:
    model = vit.model(family)
    x, n = vit.pictures(model), model.patch_embed.num_patches
    for keep in (0.5, per_layer([None, 7, 3]) if fate == "skip" else pyramid((0, 2), (0.6, 0.2))):
        route = Route(feature_norm, keep, fate=fate)
        want = vit.reference(model, x, route, vit.norm_score)
        with tokenops.attach(model, Pipeline(layers=route)) as handle:
            got = model.forward_features(x)
            for layer in range(3):
                if route.schedule(layer) is not None:
                    assert torch.equal(full(handle, layer, n), want.kept[layer][:, -n:])
            assert handle.tokens_per_layer == tuple(float(k[0, -n:].sum()) for k in want.kept)
            logits = model(x)
        vit.close(got, want.features)
        vit.close(logits, model.forward_head(want.features))
        assert (logits - model(x)).abs().max() > 1e-3


@families
@torch.no_grad()
def test_pruning_before_the_blocks_equals_the_reference(family: str) -> None:
    model = vit.model(family)
    x, n = vit.pictures(model), model.patch_embed.num_patches
    with tokenops.attach(model, Pipeline(after_projector=Prune(UniformGrid(0.4)))) as handle:
        got = model.forward_features(x)
        kept = full(handle, None, n)
    assert kept.sum(1).tolist() == [int(0.4 * n)] * 3
    want = vit.reference(model, x, first=kept)
    vit.close(got, want.features)


@pytest.mark.parametrize("family", ["plain", "siglip", "eva, rope"])
@torch.no_grad()
def test_pruning_then_routing_counts_what_entered(family: str) -> None:
    model = vit.model(family)
    x = vit.pictures(model)
    route = Route(feature_norm, from_layer(1, 0.5))
    both = Pipeline(after_projector=Prune(Random(0.5)), layers=route)
    with tokenops.attach(model, both) as handle:
        got, first = model.forward_features(x), full(handle, None, 16)
        assert handle.tokens_per_layer == (8.0, 4.0, 4.0)
        assert [t.n for t in handle.trace] == [16] * 3 + [8] * 6
        assert all(t.scores.shape == (t.n,) for t in handle.trace)
    vit.close(got, vit.reference(model, x, route, vit.norm_score, first=first).features)


@pytest.mark.parametrize("family", vit.LOOKING)
@pytest.mark.parametrize("fate", ["skip", "exit"])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_attention_of_the_block_before(family: str, fate: str, fused: bool) -> None:
    model = vit.model(family)
    for block in model.blocks:
        block.attn.fused_attn = fused
    x, n = vit.pictures(model), model.patch_embed.num_patches
    looks = {cls_attention: lambda seen: seen[:, 0], received_attention: lambda seen: seen.mean(1)}
    for scorer, look in looks.items():
        route = Route(scorer, pyramid((1, 2), (0.6, 0.3)), fate=fate)
        want = vit.reference(model, x, route, lambda block, x, seen, look=look: look(seen))
        with tokenops.attach(model, Pipeline(layers=route)) as handle:
            vit.close(model.forward_features(x), want.features)
            for layer in (1, 2):
                assert torch.equal(full(handle, layer, n), want.kept[layer][:, -n:])


@torch.no_grad()
def test_low_rank_attention_takes_prefix_tokens_for_text() -> None:
    model = vit.model("registers")
    x = vit.pictures(model)
    w = [block.attn.qkv.weight.chunk(3) for block in model.blocks]
    factors = {
        i: LowRankAttention.from_weights(q, k, rank=24, heads=2, svd="logits", causal=False)
        for i, (q, k, _) in enumerate(w)
    }

    def score(block: Any, x: Tensor, seen: Tensor | None) -> Tensor:
        normed, (q, k, _) = block.norm1(x), block.attn.qkv.weight.chunk(3)
        seen = ((normed @ q.T) @ (normed @ k.T).mT * 12**-0.5).softmax(-1)
        return seen[:, :4].mean(1) * seen[:, 4:].mean(1)

    route = Route(factors, 0.5)
    want = vit.reference(model, x, route, score)
    with tokenops.attach(model, Pipeline(layers=route)):
        vit.close(model.forward_features(x), want.features)


@pytest.mark.parametrize("family", ["plain", "siglip", "eva, rope"])
@pytest.mark.parametrize(
    "merger", [bipartite, nearest_kept, Contextual(6)], ids=["tome", "near", "contextual"]
)
@torch.no_grad()
def test_merging_before_the_blocks(family: str, merger: Any) -> None:
    """Anchors carry the mean of their groups, the rest is not there."""
    model = vit.model(family)
    x, p = vit.pictures(model), model.num_prefix_tokens
    selector = TopK(feature_norm, 4 if isinstance(merger, Contextual) else 6)
    embedded, _ = vit.tokens(model, x)
    patches = embedded[:, p:]
    merged = merger(patches, selector(patches))
    there, kept = embedded.clone(), torch.zeros(3, 16, dtype=torch.bool)
    for row in range(3):
        for slot, anchor in enumerate(merged.anchor[row].tolist()):
            kept[row, anchor] = True
            there[row, p + anchor] = patches[row, merged.group[row] == slot].mean(0)
    want = vit.reference(model, x, first=kept, embedded=there)
    with tokenops.attach(model, Pipeline(after_projector=Merge(selector, merger))) as handle:
        vit.close(model.forward_features(x), want.features)
        assert torch.equal(full(handle, None, 16), kept)
        assert all(t.mass.sum() == 16 for t in handle.trace)


@families
@torch.no_grad()
def test_rows_are_independent(family: str) -> None:
    model = vit.model(family)
    x = vit.pictures(model)
    pipeline = Pipeline(after_projector=Prune(TopK(feature_norm, 0.7)), layers=Route(feature_norm, 0.5))
    with tokenops.attach(model, pipeline):
        together = model(x)
        for row in range(3):
            vit.close(model(x[row : row + 1]), together[row : row + 1])
        if "eva" not in family:  # which cannot run an empty batch unattached either
            assert model(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("family", ["plain", "siglip", "registers", "eva, rope"])
@torch.no_grad()
def test_images_of_any_size(family: str) -> None:
    model = vit.model(family, dynamic_img_size=True)
    route = Route(feature_norm, 0.5)
    for size in ((16, 16), (24, 12), (8, 20)):
        x, (h, w) = vit.pictures(model, size=size), (size[0] // 4, size[1] // 4)
        want = vit.reference(model, x, route, vit.norm_score)
        with tokenops.attach(model, Pipeline(layers=route)) as handle:
            vit.close(model.forward_features(x), want.features)
            t = handle.trace[0]
            assert t.n == h * w
            assert torch.equal(t.grid, torch.stack([0 * t.index, t.index // w, t.index % w], 1))
            assert torch.equal(t.positions, t.index + model.num_prefix_tokens)


@torch.no_grad()
def test_a_random_scorer_chooses_the_same_patches_every_time() -> None:
    model = vit.model()
    x = vit.pictures(model)
    with tokenops.attach(model, Pipeline(layers=Route(RandomScore(3), from_layer(1, 0.5), fate="exit"))):
        assert torch.equal(model(x), model(x))


@torch.no_grad()
def test_scorers_see_the_grid_and_which_tokens_are_patches() -> None:
    model = vit.model("registers", img_size=(16, 28))
    x = vit.pictures(model)

    def left_half(x: Tensor, *, grid: Tensor, visual: Tensor) -> Tensor:
        assert grid[:, :4].eq(-1).all()
        assert torch.equal(visual, (grid >= 0).all(-1))
        return -grid[..., 2].float()

    with tokenops.attach(model, Pipeline(layers=Route(left_half, 12))) as handle:
        model(x)
        assert all(t.grid[:, 2].max() == 2 for t in handle.trace)
