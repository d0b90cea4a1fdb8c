"""The cost as a value: totals, tables, caches, conventions, and what it refuses."""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from typing import Any

import pytest
import torch
from analysis.flops import SIZES
from integrations import tiny
from torch import Tensor, nn

import tokenops
from tokenops import Merge, Pipeline, Prune, recipes
from tokenops.analysis import DEVICES, Cost, Device, Op, Part, break_even, cost, counts, device_here
from tokenops.analysis.cost import components, devices
from tokenops.analysis.cost.architecture import architecture
from tokenops.analysis.cost.images import images_of
from tokenops.errors import TokenOpsError
from tokenops.routers import Route, per_layer
from tokenops.selectors import TopK
from tokenops.selectors.mergers import nearest_kept
from tokenops.selectors.scorers import LearnedScorer, feature_norm

pytestmark = pytest.mark.hf
families = pytest.mark.parametrize("family", list(tiny.MODELS))
MACHINE = Device("bench", {"float32": 2e12, "bfloat16": 4e12}, bandwidth=1e11, launch=1e-6)


def config(family: str = "llava") -> Any:
    with torch.device("meta"):
        return tiny.MODELS[family]().config


LLAVA = config()


# -- sums and conventions ---------------------------------------------------------------------------------


def test_totals_are_sums_and_the_roofline_is_the_longer_side() -> None:
    made = cost(LLAVA, 16, recipes.uniform(0.5), device=MACHINE, dtype="float32")
    assert list(made.parts) == ["vision tower", "projector", "selection", "layers", "head"]
    assert made.flops == sum(part.flops for part in made.parts.values())
    assert made.bytes == sum(part.bytes for part in made.parts.values())
    assert made.seconds == pytest.approx(sum(part.seconds for part in made.parts.values()))
    for part in made.parts.values():
        assert part.seconds >= max(part.flops / 2e12, part.bytes / 1e11) * (1 - 1e-9)
    head = made.parts["head"]
    assert head.flops == 2 * 48 * 100
    assert head.bytes == 4 * (48 + 48 * 100 + 100)
    assert head.seconds == head.bytes / 1e11


def test_the_speedup_is_the_ratio_to_the_call_without() -> None:
    made, whole = (cost(LLAVA, 16, p, device=MACHINE) for p in (recipes.uniform(0.25), None))
    limit = made.speedup_limit
    assert limit.time == whole.seconds / made.seconds
    assert limit.flops == whole.flops / made.flops
    assert limit.flops_language == whole.language.flops / made.language.flops > limit.flops > 1
    assert made.whole == whole


def test_keys_and_values_of_grouped_heads() -> None:
    made = cost(LLAVA, 16, text=4, batch=3, dtype="float16")
    assert (
        made.kv_bytes == 2 * 2 * 12 * (16 + 4) * 3 * 3 * 2
    )  # k and v, heads, width, tokens, layers, rows, bytes


def test_a_causal_map_has_half_the_pairs() -> None:
    full, causal = (
        cost(LLAVA, 16, text=4, pairs=pairs).parts["layers"].flops for pairs in ("full", "causal")
    )
    assert full - causal == 3 * 4 * 48 * (20 * 20 - 20 * 21 // 2)


def test_selection_runs_in_float32_at_its_rate() -> None:
    slow = Device("slow", {"float32": 1e6, "bfloat16": 4e12}, bandwidth=1e15)
    made = cost(LLAVA, 16, recipes.visionselector(LearnedScorer(48), 0.5), device=slow, dtype="bfloat16")
    selection = made.parts["selection"]
    assert selection.seconds == pytest.approx(selection.flops / 1e6, rel=1e-3)
    assert made.seconds - selection.seconds < 1e-5


@families
def test_a_batch_reads_the_weights_once(family: str) -> None:
    one, four = (cost(config(family), [SIZES[family][0]], batch=b) for b in (1, 4))
    assert four.flops == 4 * one.flops
    assert one.bytes < four.bytes < 4 * one.bytes
    assert four.kv_bytes == 4 * one.kv_bytes


def test_text_alone_costs_no_tower() -> None:
    made = cost(LLAVA, 0, recipes.uniform(0.5), text=7)
    assert made.parts["vision tower"] == made.parts["projector"] == made.parts["selection"] == Part()
    assert made.tokens_per_layer == (7, 7, 7)
    assert made.speedup_limit.time == 1.0
    assert cost(LLAVA, [], text=7).flops == made.flops
    assert cost(LLAVA, [16], text=0).visual_per_layer == (16, 16, 16)


def test_a_model_is_its_config_and_its_dtype() -> None:
    model = tiny.MODELS["llava"]().half()
    made = cost(model, 16, device="h100")
    assert made.dtype == "float16"
    assert made == cost(model.config, 16, dtype=torch.float16, device="h100")
    wrapped = nn.Module()
    wrapped.get_base_model = lambda: model  # as PEFT wraps it
    assert cost(wrapped, 16, device="h100") == made
    given = copy.deepcopy(LLAVA)
    given.dtype = torch.float32
    assert cost(given, 16).dtype == "float32"
    given.dtype = None
    assert cost(given, 16).dtype == "bfloat16"


# -- tokens -----------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("which", range(4))
def test_sizes_say_what_the_model_makes_of_an_image(family: str, which: int) -> None:
    picture = tiny.picture(family, which, 0)
    (image,) = images_of(architecture(config(family)), [SIZES[family][which]])
    assert image.tokens + image.breaks == picture.size
    pixels = next(v for k, v in picture.inputs.items() if k.startswith("pixel"))
    views = pixels.shape[0] if family == "qwen2_5_vl" else pixels.shape[-4] * 16
    assert image.patches == views


def test_numbers_of_tokens() -> None:
    views = architecture(config("llava_next"))
    (image,) = images_of(views, 33)
    assert (image.tokens, image.breaks, image.patches, image.projected) == (33, 0, 48, 48)
    merged = architecture(config("qwen2_5_vl"))
    (image,) = images_of(merged, 9)
    assert (image.patches, list(image.full)) == (36, [(36, 1)])
    assert sum(n * times for n, times in image.windows) == 36
    (same,) = images_of(merged, [(1, 4, 8)])
    assert dict(same.windows) == {16: 2}


def test_a_number_of_whole_windows_is_its_grid() -> None:
    made, grid = (cost(config("qwen2_5_vl"), tokens) for tokens in (16, [(1, 8, 8)]))
    assert made == grid


def test_layers_of_a_schedule_and_of_both_places() -> None:
    both = recipes.uniform(0.5) | Pipeline(layers=Route(feature_norm, per_layer([None, 0.5, 3])))
    made = cost(LLAVA, [16, 16], both, text=4)
    assert made.visual_per_layer == (16, 8, 6)
    assert made.tokens_per_layer == (20, 12, 10)
    leaving = cost(LLAVA, 16, Pipeline(layers=Route(feature_norm, per_layer([0.5, None, 0.75]), fate="exit")))
    assert leaving.visual_per_layer == (8, 8, 8)
    back = cost(LLAVA, 16, Pipeline(layers=Route(feature_norm, per_layer([0.5, None, 0.75]))))
    assert back.visual_per_layer == (8, 16, 12)


def test_merging_keeps_what_selector_and_merger_say() -> None:
    assert cost(LLAVA, 16, recipes.visionzip(8, contextual=0.25)).visual_per_layer[0] == 8
    assert cost(LLAVA, 16, recipes.visionzip(8, contextual=0)).visual_per_layer[0] == 8
    merged = Pipeline(after_projector=Merge(TopK(feature_norm, 0.25), nearest_kept))
    assert cost(LLAVA, 16, merged).visual_per_layer[0] == 4


def test_a_pooled_budget_is_rounded_once() -> None:
    pooled = Pipeline(after_projector=Prune(TopK(feature_norm, 0.1), scope="sample"))
    each = Pipeline(after_projector=Prune(TopK(feature_norm, 0.1)))
    made = [cost(LLAVA, [16, 16], p).visual_per_layer[0] for p in (pooled, each)]
    assert made == [3, 2]


# -- components -------------------------------------------------------------------------------------------


def test_unknown_components_are_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., 0]

    def other(x: Tensor, *, mystery: Tensor) -> Tensor:
        return mystery

    made = cost(LLAVA, 16, Pipeline(after_projector=Prune(TopK(Odd(), 0.5)), layers=Route(other, 0.5)))
    assert made.not_counted == ("Odd", "mystery", "other")
    assert "not counted: Odd, mystery, other" in made.table()
    known = cost(LLAVA, 16, Pipeline(after_projector=Prune(TopK(partial(feature_norm), 0.5))))
    assert known.not_counted == ()


def test_a_formula_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_FORMULAS", dict(components._FORMULAS))

    class Mine(nn.Module):
        pass

    class Child(Mine):
        pass

    @counts(Mine)
    def _(component: Mine, site: Any) -> Any:
        yield Op(flops=site.rows * site.n * site.k)
        yield from site.ops(feature_norm)

    made = cost(LLAVA, [16, 16], Pipeline(after_projector=Prune(TopK(Child(), 0.25))), batch=3)
    assert made.parts["selection"].flops == 3 * 2 * 16 * 4
    assert made.not_counted == ()


def test_every_component_of_the_package_is_counted() -> None:
    for kind in ("scorer", "selector", "merger"):
        for entry in tokenops.registry.registered(kind):
            if entry.component.__module__.startswith("tokenops."):
                assert components._formula(entry.make()) is not None or entry.name == "Random", entry.name


def test_attention_costs_more_than_a_norm() -> None:
    made = {
        name: cost(config("qwen2_5_vl"), 400, pipeline).parts["selection"].flops
        for name, pipeline in {
            "norm": recipes.feature_norm(0.2),
            "received": recipes.visionzip(0.2, contextual=0, cls=False),
            "diverse": recipes.divprune(0.2),
        }.items()
    }
    assert made["norm"] == 0 < made["diverse"]
    assert made["received"] == 2 * 1600**2 * 32


# -- devices ----------------------------------------------------------------------------------------------


def test_this_machine() -> None:
    made = device_here()
    assert made is device_here()
    assert 1e8 < made.rate("float32") < 1e14
    assert 1e8 < made.bandwidth < 1e13
    assert 0 < made.launch < 1e-3
    assert cost(LLAVA, 16, dtype="float32", device="cpu").device == "cpu"


def test_this_machine_is_measured_for_each_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_estimated", cache(devices._estimated.__wrapped__))
    monkeypatch.setattr(devices, "_best", lambda call, runs: 1.0 / torch.get_num_threads())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = device_here()
        torch.set_num_threads(2)
        two = device_here()
        assert two.rate("float32") == 2 * one.rate("float32")
        assert device_here() is two
        torch.set_num_threads(1)
        assert device_here() is one
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", list(DEVICES))
def test_known_devices(name: str) -> None:
    assert DEVICES[name].name == name
    assert DEVICES[name].rate("bfloat16") > DEVICES[name].rate("float32")


def test_a_device_needs_sense() -> None:
    for wrong in ({"flops": {}}, {"flops": {"float32": 0}}, {"bandwidth": -1.0}, {"launch": -1.0}):
        with pytest.raises(TokenOpsError, match="Device"):
            Device(**({"name": "x", "flops": {"float32": 1e9}, "bandwidth": 1e9} | wrong))  # type: ignore[arg-type]


# -- showing ----------------------------------------------------------------------------------------------


def test_table_and_dict() -> None:
    made = cost(LLAVA, [16, 16], recipes.fastv(0.25), batch=2)
    told = made.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["speedup_limit"]["flops"] == made.speedup_limit.flops
    assert told["total"]["flops"] == made.flops
    table = str(made)
    assert "llava, 16 + 16 visual and 64 text tokens, batch 2" in table
    assert "32 x 2, 8 x 1" in table
    assert [line.split("  ")[0] for line in table.splitlines()[2:8]] == [*made.parts, "total"]
    assert len({len(line) for line in table.splitlines()[1:8]}) == 1
    assert "at best" not in str(cost(LLAVA, 16))
    assert isinstance(made.whole, Cost)


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_or_config": nn.Linear(2, 2)}, "known family"),
        ({"model_or_config": "llava"}, "known family"),
        ({"device": "tpu"}, "one of h200"),
        ({"device": ["h200"]}, "one of h200"),
        ({"device": None}, "one of h200"),
        ({"device": Device("half", {"bfloat16": 1e12}, 1e12), "dtype": "float32"}, "dtype of half"),
        ({"dtype": "int8"}, "floating dtype"),
        ({"dtype": "nonsense"}, "floating dtype"),
        ({"text": -1}, "text as an int >= 0"),
        ({"text": 1.5}, "text as an int"),
        ({"batch": 0}, "batch as an int >= 1"),
        ({"batch": True}, "batch as an int"),
        ({"pairs": "half"}, "pairs among"),
        ({"tokens": -1}, "int >= 0"),
        ({"tokens": True}, "int >= 0"),
        ({"tokens": "16"}, "ints or sizes"),
        ({"tokens": 16.0}, "ints or sizes"),
        ({"tokens": [(16, 16)]}, "an image of llava"),
        ({"tokens": 0, "text": 0}, "at least one token"),
        ({"pipeline": Prune(TopK(feature_norm, 0.5))}, "a Pipeline"),
        ({"pipeline": Pipeline(after_projector=Route(feature_norm, 0.5))}, "a Stage at after_projector"),
        ({"pipeline": Pipeline(layers=Prune(TopK(feature_norm, 0.5)))}, "a Route at layers"),
        ({"pipeline": Pipeline(after_projector=Prune(lambda x: x))}, "the attribute keep"),
        ({"pipeline": Pipeline(layers=Route(feature_norm, per_layer([0.5])))}, "a layer in"),
    ],
)
def test_refusals(change: dict[str, Any], match: str) -> None:
    given = {"model_or_config": LLAVA, "tokens": 16, "pipeline": None} | change
    with pytest.raises(TokenOpsError, match=match):
        cost(**given)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("qwen2_5_vl", [(1, 3, 4)]),
        ("qwen2_5_vl", [(8, 8)]),
        ("qwen2_5_vl", [(0, 8, 8)]),
        ("llava_next", [(16,)]),
        ("llava_next", [(16, -1)]),
        ("llava_next", [(1, 16, 16)]),
    ],
)
def test_sizes_of_another_family(family: str, tokens: Any) -> None:
    with pytest.raises(TokenOpsError, match=f"an image of {family}"):
        cost(config(family), tokens)


def test_other_parts_are_refused() -> None:
    from transformers import GemmaConfig, ViTConfig

    odd = copy.deepcopy(LLAVA)
    odd.text_config = GemmaConfig()
    with pytest.raises(TokenOpsError, match="a language model among llama"):
        cost(odd, 16)
    odd = copy.deepcopy(LLAVA)
    odd.vision_config = ViTConfig()
    with pytest.raises(TokenOpsError, match="a vision tower among clip"):
        cost(odd, 16)


def test_break_even_refuses_too() -> None:
    with pytest.raises(TokenOpsError, match="break_even: a Pipeline"):
        break_even(LLAVA, None)  # type: ignore[arg-type]
    with pytest.raises(TokenOpsError, match="most"):
        break_even(LLAVA, Pipeline(), most=0)
    with pytest.raises(TokenOpsError, match="break_even: a Device"):
        break_even(LLAVA, Pipeline(), device="tpu")
    with pytest.raises(TokenOpsError, match="counts"):
        counts()
