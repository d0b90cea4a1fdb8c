"""Routed layers under ``torch.compile``: one graph for all of them, which serves the next image as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tokenops
from tokenops import Pipeline, TokenOpsError, recipes
from tokenops.integrations import low_rank_factors

slow = pytest.mark.slow
SKIP, EXIT = (0.3, None, 0.5), (0.5, None, 0.3)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def alvts(model: nn.Module) -> Pipeline:
    return recipes.alvts(low_rank_factors(model, rank=4), keep=0.3)


PIPELINES: dict[str, Callable[[nn.Module], Pipeline]] = {
    "skip": lambda model: routed.routed(SKIP),
    "exit": lambda model: routed.routed(EXIT, "exit"),
    "alvts": alvts,
    "fastv": lambda model: recipes.fastv(0.5, layer=1),
    "pyramiddrop": lambda model: recipes.pyramiddrop((0.5, 0.25), layers=(1, 2)),
    "pruned before": lambda model: ref.prune(0.6) | routed.routed(SKIP),
}


class Graphs:
    """The backend aot_eager, which counts the attention calls in every graph it gets."""

    def __init__(self) -> None:
        self.attention: list[int] = []

    def __call__(self, module: Any, inputs: Any) -> Any:
        calls = [node for node in module.graph.nodes if node.target is F.scaled_dot_product_attention]
        self.attention.append(len(calls))
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)


def prompts(family: str, batch: int) -> list[dict[str, Any]]:
    """Three calls of one size: other words, other images."""
    return [
        tiny.batch([tiny.sample(family, [0], 10 * call + row) for row in range(batch)])
        for call in range(1, 4)
    ]


def ragged(family: str) -> list[dict[str, Any]]:
    """Padded, with two images, one and none in a row; three calls of one size."""
    return [
        tiny.batch(
            [tiny.sample(family, images, 10 * call + row) for row, images in enumerate(([0, 1], [3], []))]
        )
        for call in range(1, 4)
    ]


def same_cache(got: Any, want: Any) -> None:
    """Real entries are equal; graphs may hold filler where the exact count is not known beforehand."""
    for ours, theirs in zip(got.layers, want.layers, strict=True):
        stored, expected = ours.source >= 0, theirs.source >= 0
        assert torch.equal(ours.source[stored], theirs.source[expected])
        for name in ("keys", "values"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            ref.close(mine.transpose(1, 2)[stored], other.transpose(1, 2)[expected], 1e-5)


def one_graph_serves(
    family: str, make: Callable[[nn.Module], Pipeline], calls: list[dict[str, Any]], use_cache: bool
) -> None:
    model = ref.model(family)
    language, graphs = model.model.language_model, Graphs()
    options = {"use_cache": use_cache}
    with torch.no_grad(), tokenops.attach(model, make(model)) as handle:
        want = [(model(**inputs, **options), handle.trace) for inputs in calls]
        language.compile(backend=graphs, dynamic=False)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = [(model(**inputs, **options), handle.trace) for inputs in calls]
        assert graphs.attention == [len(language.layers)]
        for (ours, trace), (theirs, before) in zip(got, want, strict=True):
            ref.close(ours.logits, theirs.logits, 1e-5)
            assert [t.index.tolist() for t in trace] == [t.index.tolist() for t in before]
            if use_cache:
                same_cache(ours.past_key_values, theirs.past_key_values)


@pytest.mark.parametrize(
    ("family", "kind", "batch", "use_cache"),
    [
        ("llava", "skip", 1, True),
        ("llava", "fastv", 2, False),
        ("qwen2_5_vl", "exit", 1, True),
        *(
            pytest.param(family, kind, batch, use_cache, marks=slow)
            for family in tiny.MODELS
            for kind in PIPELINES
            for batch, use_cache in ((1, False), (2, True))
        ),
    ],
)
def test_the_routed_language_model_is_one_graph(family: str, kind: str, batch: int, use_cache: bool) -> None:
    one_graph_serves(family, PIPELINES[kind], prompts(family, batch), use_cache)


@pytest.mark.parametrize("kind", [pytest.param("skip", marks=slow), "exit"])
@pytest.mark.parametrize("family", ["llava", *(pytest.param(f, marks=slow) for f in list(tiny.MODELS)[1:])])
def test_ragged_batches_are_one_graph_too(family: str, kind: str) -> None:
    one_graph_serves(family, PIPELINES[kind], ragged(family), True)


@slow
@pytest.mark.parametrize("family", list(tiny.MODELS))
@pytest.mark.parametrize("kind", ["skip", "alvts", "fastv"])
def test_the_whole_model_compiled_by_inductor(family: str, kind: str) -> None:
    model, calls = ref.model(family), prompts(family, 1)
    with torch.no_grad(), tokenops.attach(model, PIPELINES[kind](model)):
        want = [model(**inputs) for inputs in calls]
        compiled = torch.compile(model, dynamic=False)
        compiled(**calls[0])
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = [compiled(**inputs) for inputs in calls]
    for ours, theirs in zip(got, want, strict=True):
        ref.close(ours.logits, theirs.logits, 1e-4)
        same_cache(ours.past_key_values, theirs.past_key_values)


@slow
@pytest.mark.parametrize("kind", ["skip", "exit"])
def test_gradients_through_the_compiled_layers(kind: str) -> None:
    model, inputs = ref.model("llava"), prompts("llava", 1)[0]
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    with tokenops.attach(model, PIPELINES[kind](model)):
        want = torch.autograd.grad(model(**inputs).logits.square().mean(), weight)[0]
        model.model.language_model.compile(backend="aot_eager", dynamic=False)
        got = torch.autograd.grad(model(**inputs).logits.square().mean(), weight)[0]
    ref.close(got, want, 1e-5)


class Reads(TorchDispatchMode):
    """Counts numbers that Python reads from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["skip", "exit"])
@pytest.mark.parametrize("side", ["left", "none"])
def test_reads_from_the_device_do_not_grow_with_the_layers(side: str, kind: str) -> None:
    """In a decoded token; ``side`` none is a batch of equal lengths."""
    inputs = routed.batch_of("llava") if side == "left" else prompts("llava", 2)[0]
    counts = []
    for layers in (2, 4):
        model = tiny.llava()
        config = model.config.text_config
        blocks = [type(model.model.language_model.layers[0])(config, i) for i in range(layers)]
        model.model.language_model.layers = nn.ModuleList(blocks)
        config.num_hidden_layers = layers
        pipeline = routed.routed((0.5, 0.3, 0.2, 0.1)[:layers], kind)
        with torch.no_grad(), tokenops.attach(model.eval(), pipeline):
            cache = model(**inputs, use_cache=True).past_key_values
            token = torch.full((len(inputs["input_ids"]), 1), 7)
            mask = ref.extend(inputs, token)["attention_mask"]
            with Reads() as reads:
                model(input_ids=token, attention_mask=mask, past_key_values=cache)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["skip", "exit"])
def test_decoded_tokens_of_several_steps_can_be_cropped(kind: str) -> None:
    model, inputs = ref.model("llava"), tiny.sample("llava", [0], 1)
    token = torch.tensor([[7]])
    with torch.no_grad(), tokenops.attach(model, PIPELINES[kind](model)):
        cache = model(**inputs, use_cache=True).past_key_values
        before = cache.get_seq_length()
        first = model(input_ids=token, past_key_values=cache).logits
        model(input_ids=token, past_key_values=cache)
        with pytest.raises(TokenOpsError, match=r"cache\.crop"):
            cache.crop(5)  # inside the image
        cache.crop(before)
        assert cache.get_seq_length() == before
        ref.close(model(input_ids=token, past_key_values=cache).logits, first)


def test_a_language_model_that_keeps_its_keywords_to_itself_is_refused() -> None:
    model = ref.model("llava")
    language = model.model.language_model
    original = type(language).forward

    def forward(**kwargs: Any) -> Any:
        return original(language, **{k: v for k, v in kwargs.items() if not k.startswith("tokenops")})

    language.forward = forward
    with (
        torch.no_grad(),
        tokenops.attach(model, routed.routed(SKIP)),
        pytest.raises(TokenOpsError, match="hands its keyword arguments on to its layers, got 0 of 3"),
    ):
        model(**tiny.sample("llava", [0], 1))
