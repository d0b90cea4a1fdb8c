"""The low-rank attention of a layer as a module: the laws of a scorer, gradients, dtypes, state, errors."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from routers.kit import F64, Layer, angles
from torch import Tensor, nn

from tokenops import TokenOpsError
from tokenops.routers import LowRankAttention
from tokenops.routers.low_rank import reference
from tokenops.testing import scorers
from tokenops.testing.drawing import Law, assert_close, hold


def with_visual(name: str, b: int, n: int) -> Tensor:
    assert name == "visual"
    return (torch.arange(n) % 4 != 1).expand(b, n).clone()


class Heads(LowRankAttention):
    """Order matters: rows are causal."""

    positional = True


def instance(softmax: str, bias: bool = True) -> LowRankAttention:
    made = Heads(8, 3, heads=4, kv_heads=2, head_dim=2, bias=bias, softmax=softmax)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("softmax", ["joint", "head"])
@pytest.mark.parametrize("law", scorers.LAWS, ids=lambda law: law.__name__)
def test_scorer_laws(law: Law, softmax: str) -> None:
    hold(law, instance(softmax), maker=with_visual)


@pytest.mark.parametrize("softmax", ["joint", "head"])
def test_gradients_of_the_factors_equal_those_of_the_whole_map(softmax: str) -> None:
    layer = instance(softmax).double()
    x, visual, mask = torch.randn(2, 9, 8, dtype=F64), torch.rand(2, 9) < 0.7, torch.rand(2, 9) < 0.9
    rope = angles(2, 9, 2) if softmax == "head" else None
    weight = torch.randn(2, 9, dtype=F64)
    got = (layer(x, visual=visual, mask=mask, rope=rope, chunk=2) * weight).sum()
    q, k = layer.queries_and_keys(x, rope=rope)
    expected = reference.attention_scores(q, k, visual=visual, mask=mask, scale=layer.scale)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    pairs = (torch.autograd.grad(t, parameters) for t in (got, (expected * weight).sum()))
    for name, mine, theirs in zip(names, *pairs, strict=True):
        assert mine.any() or "bias" in name
        assert_close(mine, theirs, 1e-12)


def test_trains_towards_a_teacher() -> None:
    """Gradients through chunks: rank 2 learns to rank as the full layer does better than its SVD."""
    layer = Layer()
    student = layer.low_rank(2).float()
    x = torch.randn(8, 20, layer.d)
    visual = torch.arange(20).expand(8, 20) < 16
    teacher = reference.attention_scores(*layer.queries_and_keys(x.double()), visual=visual).float() * 400
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (student(x, visual=visual, chunk=7) * 400 - teacher).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_parameters() -> None:
    sizes = {"heads": 28, "kv_heads": 4, "head_dim": 128}
    with torch.device("meta"):
        joint = LowRankAttention(3584, 256, **sizes, bias=True)
        heads = LowRankAttention(3584, 256, **sizes, bias=True, softmax="head")
    assert sorted(joint.state_dict()) == ["k.weight", "q.bias", "q.weight"]
    assert sum(p.numel() for p in joint.parameters()) == 2 * 256 * 3584 + 256
    names = ["k.weight", "k_up.bias", "k_up.weight", "q.weight", "q_up.bias", "q_up.weight"]
    assert sorted(heads.state_dict()) == names
    assert sum(p.numel() for p in heads.parameters()) == 256 * (2 * 3584 + 4096) + 4096


@pytest.mark.parametrize("softmax", ["joint", "head"])
@pytest.mark.parametrize("bias", [True, False])
def test_saves_and_loads(softmax: str, bias: bool) -> None:
    layer = Layer().low_rank(3, softmax=softmax, bias=bias)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = eval(repr(layer)).double()
    assert repr(twin) == repr(layer)
    twin.load_state_dict(torch.load(file))
    x, visual = torch.randn(2, 5, layer.dim, dtype=F64), torch.rand(2, 5) < 0.6
    assert torch.equal(twin(x, visual=visual), layer(x, visual=visual))
    assert all(p.requires_grad and p.is_contiguous() for p in layer.parameters())


def test_leaves_weights_and_the_random_generator_alone() -> None:
    layer = Layer()
    before, state = layer.b_k.clone(), torch.get_rng_state()
    made = layer.low_rank(2, softmax="head")
    assert torch.equal(torch.get_rng_state(), state)
    assert made.k_up is not None
    made.k_up.bias.data.add_(1)
    assert torch.equal(layer.b_k, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_features(dtype: torch.dtype) -> None:
    """Factors in float32, products in the features' dtype, float32 scores; rounded as in the layer."""
    layer = Layer()
    weights = [w.to(dtype) for w in (layer.w_q, layer.w_k)]
    x, visual = torch.randn(2, 30, layer.d).to(dtype), torch.rand(2, 30) < 0.7
    made, exact = (
        LowRankAttention.from_weights(*(w.to(wide) for w in weights), rank=3, heads=layer.h, kv_heads=layer.g)
        for wide in (dtype, F64)
    )
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    expected = exact(x.double(), visual=visual).detach()
    got = made(x, visual=visual).detach()
    assert got.dtype == torch.float32
    assert {t.dtype for t in made.queries_and_keys(x)} == {dtype}
    # an entry of q or k is off by a few roundings, a logit by as much times its size
    assert_close(got, expected, 16 * torch.finfo(dtype).eps * float(expected.max()))
    plain = made(x.float(), visual=visual).detach()
    assert_close(plain, expected, 1e-4 * float(expected.max()))
    assert made.to(dtype)(x, visual=visual).dtype == torch.float32


def test_scores_stay_distinct_at_8000_tokens() -> None:
    """Scores near 1e-8 rank in float32 as in float64: as good as no ties, the same best tenth."""
    torch.manual_seed(0)
    made = LowRankAttention(64, 16, heads=4)
    x, visual = torch.randn(1, 8064, 64), torch.arange(8064)[None] < 8000
    asked = torch.arange(8064)[None] >= 7000
    with torch.no_grad():
        made.q.weight.mul_(3)
        scores = made(x, visual=visual, queries=asked)[0, :8000]
        exact = copy.deepcopy(made).double()(x.double(), visual=visual, queries=asked)[0, :8000]
    assert len(scores.unique()) > 7990
    best = [set(t.topk(800).indices.tolist()) for t in (scores, exact)]
    assert len(best[0] & best[1]) >= 799


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dim": 0}, "dim"),
        ({"rank": 9}, "rank"),
        ({"rank": True}, "rank"),
        ({"heads": 0}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"heads": 16}, "head_dim"),
        ({"softmax": "both"}, "softmax"),
    ],
)
def test_bad_sizes(options: dict[str, Any], told: str) -> None:
    with pytest.raises(TokenOpsError, match=told):
        LowRankAttention(**({"dim": 8, "rank": 2, "heads": 4} | options))


def test_bad_weights() -> None:
    w, k = torch.randn(8, 6), torch.randn(4, 6)
    good = {"rank": 2, "heads": 4, "kv_heads": 2}
    calls: list[tuple[tuple[Any, Any], dict[str, Any]]] = [
        ((w[0], k), {}),
        ((w, k[:3]), {}),
        ((w, k[:, :5]), {}),
        ((w, k.double()), {}),
        ((w.long(), k.long()), {}),
        ((w, k), {"heads": 3}),
        ((w, k), {"kv_heads": 0}),
        ((w, k), {"kv_heads": True}),
        ((w, k), {"rank": 7}),
        ((w, k), {"bias_q": torch.zeros(7)}),
        ((w, k), {"bias_k": torch.zeros(8)}),
        ((w, k), {"svd": "both"}),
        ((w, k), {"svd": "logits", "softmax": "head"}),
        ((w, k), {"softmax": "none"}),
        ((w.index_fill(0, torch.tensor(1), torch.nan), k), {}),
        ((w, k), {"bias_q": torch.full((8,), torch.inf)}),
    ]
    for weights, options in calls:
        with pytest.raises(TokenOpsError, match="LowRankAttention"):
            LowRankAttention.from_weights(*weights, **(good | options))


def test_bad_input() -> None:
    joint, heads = instance("joint"), instance("head")
    x, visual, table = torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 2)
    calls = [
        lambda: joint(x[..., :7], visual=visual),
        lambda: joint(x.long(), visual=visual),
        lambda: joint(x.to("meta"), visual=visual.to("meta")),
        lambda: joint(x, visual=visual[:1]),
        lambda: joint(x, visual=visual, mask=visual.float()),
        lambda: joint(x, visual=visual, chunk=0),
        lambda: joint(x, visual=visual, rope=(table, table)),
        lambda: heads(x, visual=visual, rope=(table, table[..., :1])),
        lambda: heads(x, visual=visual, rope=(table[:, :2], table)),
        lambda: heads(x, visual=visual, rope=(torch.ones(3, 3, 2), table)),
    ]
    for call in calls:
        with pytest.raises(TokenOpsError):
            call()


def test_compiles_and_deepcopies() -> None:
    for softmax in ("joint", "head"):
        layer = instance(softmax)
        x, visual, mask = torch.randn(2, 9, 8), torch.rand(2, 9) < 0.6, torch.rand(2, 9) < 0.9
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        expected = layer(x, visual=visual, mask=mask)
        with torch.no_grad():
            assert_close(compiled(x, visual=visual, mask=mask), expected, 1e-6)
        assert_close(copy.deepcopy(layer)(x, visual=visual, mask=mask), expected, 0)


@pytest.mark.parametrize(
    "wrong", [{"scale": "a"}, {"scale": True}, {"scale": float("nan")}, {"causal": "no"}]
)
def test_scale_and_causal_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(TokenOpsError, match="LowRankAttention"):
        LowRankAttention(8, 2, heads=2, **wrong)
