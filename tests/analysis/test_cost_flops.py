"""FLOPs of every part equal what torch counts while real models of the families run, to the last one.

The counter cannot see products with one row of a vector (``aten.mv``) and everything that is no product,
convolution or attention; the model counts none of these either. Rotary tables are taken off what it saw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from analysis.flops import by_column, counted, flops, predicted, prompts
from integrations import tiny
from torch.utils._python_dispatch import TorchDispatchMode

import tokenops
from tokenops import Merge, Pipeline, Prune, recipes
from tokenops.analysis import cost
from tokenops.integrations import low_rank_factors
from tokenops.routers import per_layer
from tokenops.selectors import TopK
from tokenops.selectors.mergers import bipartite, nearest_kept
from tokenops.selectors.scorers import LearnedScorer, cls_attention, feature_norm, received_attention

pytestmark = pytest.mark.hf
WIDTH = tiny.TEXT["hidden_size"]
families = pytest.mark.parametrize("family", list(tiny.MODELS))


@cache
def model(family: str) -> Any:
    return tiny.MODELS[family]()


def check(
    family: str, images: list[int], batch: int, pipeline: Pipeline | None, *, parts: bool = True
) -> Any:
    """Equal part by part, or in all where the selection reads something inside the vision tower."""
    inputs = prompts(family, images, batch)
    want = counted(model(family), inputs, pipeline)
    made = predicted(model(family), inputs, images, pipeline)
    got = flops(made)
    assert got == want if parts else got["total"] == want["total"]
    return made


@families
@pytest.mark.parametrize(("images", "batch"), [([0], 1), ([1], 2), ([2, 3], 1), ([0, 1, 2], 2)])
def test_a_model_as_it_is(family: str, images: list[int], batch: int) -> None:
    made = check(family, images, batch, None)
    assert made.speedup_limit.flops == made.speedup_limit.time == 1.0
    assert made.parts["selection"].flops == made.launches == 0


def _two_layers(config: Any) -> None:
    config.vision_feature_layer = [-2, -1]


def _with_cls(config: Any) -> None:
    config.vision_feature_select_strategy = "full"


def _siglip(config: Any) -> None:
    from transformers import SiglipVisionConfig

    config.vision_config = SiglipVisionConfig(**tiny.CLIP)
    config.vision_feature_select_strategy = "full"


def _qwen2(config: Any) -> None:
    from transformers import Qwen2Config

    config.text_config = Qwen2Config(**{**tiny.TEXT, "tie_word_embeddings": True})


def _mistral(config: Any) -> None:
    from transformers import MistralConfig

    config.text_config = MistralConfig(**{**tiny.TEXT, "head_dim": 20})


@pytest.mark.parametrize(
    ("change", "tokens"), [(_two_layers, 16), (_with_cls, 17), (_siglip, 16), (_qwen2, 16), (_mistral, 16)]
)
def test_other_towers_and_language_models(change: Callable[[Any], None], tokens: int) -> None:
    from transformers import LlavaForConditionalGeneration

    config = copy.deepcopy(model("llava").config)
    change(config)
    made = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *[tiny.IMAGE] * tokens, 5, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    want = counted(made, {**inputs, "attention_mask": torch.ones_like(ids)})
    assert flops(cost(made, tokens, text=4, pairs="full")) == want


@families
def test_eager_attention_costs_the_same(family: str) -> None:
    eager, inputs = tiny.MODELS[family](attn_implementation="eager"), prompts(family, [0], 2)
    assert flops(predicted(eager, inputs, [0])) == counted(eager, inputs)


@families
@pytest.mark.parametrize(("keep", "batch"), [(0.3, 1), (0.7, 2), (24, 1), (1.0, 2)])
def test_pruning(family: str, keep: float, batch: int) -> None:
    made = check(family, [1, 0], batch, Pipeline(after_projector=Prune(TopK(by_column, keep))))
    assert made.not_counted == ("by_column",)
    assert made.speedup_limit.flops_language >= 1.0


@families
def test_a_pooled_budget(family: str) -> None:
    check(family, [0, 0], 2, Pipeline(after_projector=Prune(TopK(by_column, 0.5), scope="sample")))


@families
@pytest.mark.parametrize("batch", [1, 2])
def test_a_learned_scorer(family: str, batch: int) -> None:
    check(family, [0], batch, recipes.visionselector(LearnedScorer(WIDTH, 20), keep=0.8))


@families
@pytest.mark.parametrize("name", ["visionzip", "nearest", "bipartite", "diverse"])
def test_comparing_components(family: str, name: str) -> None:
    attended = received_attention if family == "qwen2_5_vl" else cls_attention
    pipelines = {
        "visionzip": recipes.visionzip(0.8, cls=family != "qwen2_5_vl"),
        "nearest": Pipeline(after_projector=Merge(TopK(attended, 0.8), nearest_kept)),
        "bipartite": Pipeline(after_projector=Merge(TopK(feature_norm, 0.8), bipartite)),
        "diverse": recipes.divprune(0.8),
    }
    made = check(family, [0], 2, pipelines[name], parts=False)
    assert made.parts["selection"].flops > 0
    assert made.not_counted == ()


@families
@pytest.mark.parametrize("images", [[0], [0, 1]])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_routes_that_leave(family: str, images: list[int], name: str) -> None:
    pipelines = {
        "fastv": recipes.fastv(0.9, layer=2),
        "pyramiddrop": recipes.pyramiddrop((0.9, 0.8), layers=(1, 2)),
    }
    made = check(family, images, 2, pipelines[name])
    assert made.visual_per_layer[0] > made.visual_per_layer[2]


@families
@pytest.mark.parametrize("options", [{}, {"softmax": "head", "causal": True}], ids=["joint", "head"])
def test_routes_that_skip(family: str, options: dict[str, Any]) -> None:
    factors = low_rank_factors(model(family), 8, **options)
    check(family, [0, 1], 2, recipes.alvts(factors, per_layer([0.9, None, 0.8])))


@families
def test_both(family: str) -> None:
    factors = low_rank_factors(model(family), 8)
    check(family, [0], 2, recipes.visionselector(LearnedScorer(WIDTH), 0.9) | recipes.alvts(factors, 0.9))


@pytest.mark.parametrize("keep", [0.1, 0.3])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_low_keeps_of_routes(family: str, keep: float) -> None:
    """Of LLaVA-NeXT, these lose line breaks, how many depends on the picture."""
    factors = low_rank_factors(model(family), 8)
    check(family, [0], 1, recipes.fastv(keep, layer=1))
    check(family, [0], 1, recipes.alvts(factors, keep))


@pytest.mark.parametrize("keep", [0.1, 0.4])
def test_lost_line_breaks_only_lower_the_count(keep: float) -> None:
    """The prediction keeps as many as can stay."""
    pipeline, inputs = recipes.fastv(keep, layer=1), prompts("llava_next", [2], 1)
    made = predicted(model("llava_next"), inputs, [2], pipeline)
    assert counted(model("llava_next"), inputs, pipeline)["total"] <= made.flops


VIEWS = {
    "view",
    "_unsafe_view",
    "_reshape_alias",
    "expand",
    "slice",
    "select",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "permute",
    "detach",
    "alias",
    "split",
    "unbind",
    "diagonal",
    "empty",
    "new_empty",
    "empty_like",
    "lift_fresh",
}


class Dispatched(TorchDispatchMode):
    """Counts operations that are no views."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func._schema.name.split("::")[1] not in VIEWS
        return func(*args, **(kwargs or {}))


def dispatched(made: Any, inputs: dict[str, Any]) -> int:
    with torch.no_grad(), Dispatched() as counter:
        made(**inputs, use_cache=False, logits_to_keep=1)
    return counter.number


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["learned", "fastv", "alvts"])
def test_launches_are_about_right(family: str, name: str) -> None:
    pipelines = {
        "learned": lambda: recipes.visionselector(LearnedScorer(WIDTH), 0.3),
        "fastv": lambda: recipes.fastv(0.3, layer=1),
        "alvts": lambda: recipes.alvts(low_rank_factors(model(family), 8), 0.3),
    }
    inputs, pipeline = prompts(family, [0], 1), pipelines[name]()
    before = dispatched(model(family), inputs)
    with tokenops.attach(model(family), pipeline):
        added = dispatched(model(family), inputs) - before
    assert predicted(model(family), inputs, [0], pipeline).launches == pytest.approx(added, rel=0.35)
