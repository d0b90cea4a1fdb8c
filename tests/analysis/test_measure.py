"""Measuring: numbers that are exact are exact, ratios are paired, the model is as before."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from analysis.measure_kit import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    Clock,
    Ticking,
    prune,
    same,
    state_of,
    ticking_layers,
)
from integrations import tiny

import tokenops
from tokenops import Pipeline, TokenOpsError, recipes
from tokenops.analysis import Measurement, cost, measure
from tokenops.analysis.measure import FULL, steps
from tokenops.analysis.measure.run import quiet_collector
from tokenops.integrations import attached
from tokenops.routers import Route

pytestmark = [pytest.mark.hf, pytest.mark.usefixtures("frozen_heap")]

families = pytest.mark.parametrize("family", list(tiny.MODELS))
QUICK: dict[str, Any] = {"runs": 1, "warmup": 0, "new_tokens": 1, "device": "h200"}


def inputs_of(family: str, rows: int = 2) -> dict[str, Any]:
    return tiny.batch([tiny.sample(family, [0], seed=row) for row in range(rows)])


def kv_bytes(tokens: int) -> int:
    """float32 keys and values of so many tokens in every layer."""
    return LAYERS * 2 * KV_HEADS * HEAD_DIM * tokens * 4


@families
def test_counts_are_exact(family: str) -> None:
    model, inputs = tiny.MODELS[family](), inputs_of(family)
    with tokenops.attach(model, recipes.random(1.0)) as handle, torch.no_grad():
        model(**inputs)
        n = handle.trace[0].n
    pipelines = {"random": recipes.random(keep=4), "fastv": recipes.fastv(4, layer=2)}
    found = measure(model, inputs, pipelines, **QUICK)
    full, random, fastv = found.rows
    assert [row.name for row in found.rows] == [FULL, "random", "fastv"]
    assert full.tokens_per_layer == (n,) * LAYERS
    assert random.tokens_per_layer == (4,) * LAYERS
    assert fastv.tokens_per_layer == (n, n, 4)
    assert (full.tokens, random.tokens, fastv.tokens) == (n, 4, pytest.approx((2 * n + 4) / 3))
    rows, length = inputs["input_ids"].shape
    assert full.kv_bytes == kv_bytes(rows * length)
    breaks = length - n - found.settings["text_tokens"]
    with tokenops.attach(model, pipelines["random"]) as handle, torch.no_grad():
        stored = model(**inputs).past_key_values.layers[0].keys.shape[2]
    assert stored <= length - n + 4
    assert stored == length - n + 4 or breaks
    assert random.kv_bytes == kv_bytes(rows * stored)
    assert found.settings["visual_tokens"] == n
    assert found.settings["batch"] == rows
    assert random.peak_bytes is not None
    assert full.peak_bytes is not None
    assert random.kv_bytes <= random.peak_bytes <= full.peak_bytes, "equal where the tower needs most"


@families
def test_text_is_everything_but_placeholders_and_padding(family: str) -> None:
    model = tiny.MODELS[family]()
    samples = [tiny.sample(family, [0], seed=0), tiny.sample(family, [0, 1], seed=1, text=(7, 2))]
    words = sum(int((s["input_ids"] != tiny.IMAGE).sum()) for s in samples)
    found = measure(model, tiny.batch(samples), recipes.random(0.5), **QUICK)
    assert found.settings["text_tokens"] == words / 2
    assert found.settings["images"] == 3
    limit = found["pipeline"].limit
    assert limit is not None
    assert limit.speedup is None
    assert "rows with the same images" in str(limit.reason)


@families
def test_limit_is_that_of_the_cost_model(family: str) -> None:
    model, inputs = tiny.MODELS[family](), inputs_of(family)
    pipeline = recipes.uniform(0.25)
    found = measure(model, inputs, pipeline, **QUICK)
    row = found["pipeline"]
    size: Any = int(found.settings["visual_tokens"])
    if family == "llava_next":
        size = tuple(inputs["image_sizes"][0].tolist())
    elif family == "qwen2_5_vl":
        size = tuple(inputs["image_grid_thw"][0].tolist())
    words = int(found.settings["text_tokens"])
    expected = cost(model, [size], pipeline, text=words, batch=2, device="h200").speedup_limit
    assert row.limit is not None
    assert (row.limit.speedup, row.limit.flops, row.limit.device) == (expected.time, expected.flops, "h200")
    assert row.of_limit == row.speedup.median / expected.time
    assert found[FULL].limit is None


def test_interleaved_and_paired() -> None:
    """Whatever slows all contenders of a round down is in no ratio; warm-up rounds are not either."""
    model, clock = tiny.llava(), Clock()
    names = {"a": recipes.random(4), "b": recipes.random(8)}
    speed = {None: 6.0, 4: 2.0, 8: 3.0}
    order: list[int | None] = []

    def start() -> None:
        handle = attached(model)
        order.append(None if handle is None else handle.pipeline.stages["after_projector"].selector.keep)

    def tick(*_: Any) -> None:
        if order:
            clock.advance(speed[order[-1]] * (1 + (len(order) - 1) // 3) ** 2)

    clock.on_start = start
    model.model.vision_tower.register_forward_pre_hook(tick)
    told: list[None] = []
    found = measure(
        model,
        inputs_of("llava"),
        names,
        runs=5,
        warmup=1,
        new_tokens=1,
        timer=clock,
        device="h200",
        step=lambda: told.append(None),
    )
    assert order[:12] == [None, 4, 8, 8, 4, None] * 2
    assert found["a"].speedup.median == found["a"].speedup.low == found["a"].speedup.high == 3.0
    assert found["b"].speedup.median == 2.0
    assert found["a"].ttft.values == tuple(2.0 * round**2 for round in (2, 3, 4, 5, 6))
    assert found[FULL].speedup.median == 1.0
    assert len(told) == steps(2, runs=5, warmup=1) == 33
    assert found.settings["timer"] == "Clock"


@pytest.mark.parametrize("routed", [False, True])
def test_a_slow_pipeline_is_slower_and_the_overhead_is_its_own(routed: bool) -> None:
    model, clock = tiny.llava(), Clock()
    ticking_layers(model, clock, 1.0)
    scorer = Ticking(clock, 5.0)
    pipeline = Pipeline(layers=Route(scorer, 0.5)) if routed else prune(scorer)
    asked = LAYERS if routed else 1
    options: dict[str, Any] = {"runs": 6, "warmup": 1, "timer": clock}
    found = measure(model, inputs_of("llava"), pipeline, **QUICK | options)
    full, slow = found.rows
    assert full.ttft.median == 1.0
    assert slow.ttft.median == 1.0 + 5.0 * asked
    assert slow.speedup.high == 1 / (1.0 + 5.0 * asked)
    assert slow.overhead.values == (5.0 * asked,) * 6
    assert full.overhead.values == (0.0,) * 6
    assert slow.verdict == "slower"
    assert "does not help here, it is slower" in found.table()


def test_decoding_is_counted_from_the_first_token() -> None:
    model, clock = tiny.qwen(), Clock()
    ticking_layers(model, clock, 0.5)
    options: dict[str, Any] = {"runs": 2, "warmup": 0, "timer": clock, "device": "h200"}
    found = measure(model, inputs_of("qwen2_5_vl"), recipes.random(4), new_tokens=5, **options)
    for row in found.rows:
        assert row.decode is not None
        assert row.decode.values == (4.0, 4.0), "two rows at half a second a token"
    assert found["pipeline"].decode_speedup is not None
    assert found["pipeline"].decode_speedup.median == 1.0
    none = measure(model, inputs_of("qwen2_5_vl"), recipes.random(4), new_tokens=1, **options)
    assert none["pipeline"].decode is none["pipeline"].decode_speedup is None
    assert "decode" not in none.table()
    assert "decode" in found.table()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_untouched(family: str, training: bool) -> None:
    model = tiny.MODELS[family]().train(training)
    model.model.vision_tower.eval() if family == "llava" else None
    pipeline = recipes.random(0.5).train(not training)
    before = state_of(model, pipeline)
    measure(model, inputs_of(family), pipeline, runs=1, warmup=0, new_tokens=3, device="h200")
    assert same(before, state_of(model, pipeline))
    assert attached(model) is None


def test_a_model_that_never_ran_can_be_measured_twice() -> None:
    """Its first forward adds hooks and an attribute that says so: both have to go, or both to stay."""
    model = tiny.llava()
    for _ in range(2):
        measure(model, inputs_of("llava"), recipes.random(4), **QUICK)
    assert len(model(**inputs_of("llava"), output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize(
    ("at", "error"),
    [
        (2, RuntimeError("broken")),
        (4, KeyboardInterrupt()),
        (5, RuntimeError("broken")),
        (7, KeyboardInterrupt()),
    ],
)
def test_the_model_is_untouched_after_an_error(at: int, error: BaseException) -> None:
    """Whether it breaks while looking, timing, generating or timing the stages; attaching asks once, too."""
    model, clock = tiny.qwen().train(), Clock()
    ticking_layers(model, clock)
    scorer = Ticking(clock)
    pipeline = prune(scorer)
    scorer.at = {at: error}
    before = state_of(model, pipeline)
    with pytest.raises(type(error)):
        measure(model, inputs_of("qwen2_5_vl"), pipeline, runs=1, warmup=0, new_tokens=2, timer=clock)
    assert len(scorer.calls) == at
    assert same(before, state_of(model, pipeline))
    assert attached(model) is None
    measure(model, inputs_of("qwen2_5_vl"), recipes.random(4), **QUICK)


def test_json_and_table() -> None:
    model = tiny.llava()
    found = measure(
        model, inputs_of("llava"), recipes.random(4), runs=2, warmup=0, new_tokens=2, device="h200"
    )
    assert isinstance(found, Measurement)
    record = json.loads(found.json())
    assert record == found.as_dict()
    assert record["settings"]["model"] == "LlavaForConditionalGeneration"
    assert record["settings"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["machine"]
    row = record["rows"][1]
    assert row["pipeline"] == repr(recipes.random(4))
    assert row["kv_bytes"] == found["pipeline"].kv_bytes
    assert row["limit"]["device"] == "h200"
    assert row["verdict"] == "too few runs to tell"
    assert "random" not in found.table()
    assert "pipeline: too few runs to tell:" in found.table()
    table = found.table()
    for words in (
        "tokens",
        "TTFT ms",
        "speed-up",
        "limit",
        "KV MiB",
        "decode tok/s",
        FULL,
        "h200",
        "2 interleaved",
    ):
        assert words in table
    with pytest.raises(KeyError):
        found["nobody"]


def test_several_images_and_left_padding() -> None:
    model = tiny.llava_next()
    inputs = tiny.batch([tiny.sample("llava_next", [0, 1, 2], 0), tiny.sample("llava_next", [3], 1)])
    found = measure(model, inputs, recipes.fastv(0.5, layer=1), runs=1, warmup=0, new_tokens=3, device="h200")
    assert found.settings["images"] == 4
    assert found["pipeline"].tokens_per_layer[0] > found["pipeline"].tokens_per_layer[1]


def refused(changes: dict[str, Any], expected: str) -> None:
    """Before anything ran, and with nothing changed."""
    model, inputs, clock = tiny.llava(), inputs_of("llava"), Clock()
    tower_runs: list[None] = []
    model.model.vision_tower.register_forward_hook(lambda *_: tower_runs.append(None))
    given = {"model": model, "inputs": inputs, "pipeline": recipes.random(0.5), "timer": clock}
    before = state_of(model)
    with pytest.raises(TokenOpsError, match=expected) as caught:
        measure(**QUICK | given | changes)
    assert same(before, state_of(model))
    assert clock.started == len(tower_runs) == 0
    assert len(str(caught.value)) < 400


def test_refusals() -> None:
    inputs = inputs_of("llava")
    text = {"input_ids": torch.randint(3, 80, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    refused({"inputs": text}, "images or videos, got text only: nothing to select")
    options = {"use_cache": False, "logits_to_keep": 0, "max_new_tokens": 2, "num_beams": 1, "streamer": None}
    for name, value in {"labels": inputs["input_ids"], **options}.items():
        refused({"inputs": inputs | {name: value}}, f"a prompt without options, got {name}")
    refused({"inputs": inputs["input_ids"]}, "inputs of generate")
    refused({"inputs": {"pixel_values": inputs["pixel_values"]}}, "input_ids among them")
    refused({"inputs": {n: t.to("meta") for n, t in inputs.items()}}, "on the model's device, cpu")
    refused({"pipeline": recipes}, "a Pipeline")
    refused({"pipeline": {}}, "at least one")
    refused({"pipeline": {FULL: Pipeline()}}, "other than 'full'")
    refused({"model": torch.nn.Linear(1, 1)}, "known family")
    for name, value in {"runs": 0, "warmup": -1, "new_tokens": True}.items():
        refused({name: value}, f"{name} as an int")
    refused({"timer": "sundial"}, "a timer among")
    refused({"timer": "cuda"}, "'cuda' for CUDA models")
    refused({"device": "tpu"}, "measure: a Device or one of h200")
    refused({"device": ["h200"]}, "measure: a Device or one of h200")
    refused({"family": "llava"}, "a known family .* got 'llava'")
    refused({"step": 3}, "step as a function, got 3")


def test_compiled_is_refused_also_inside() -> None:
    model = tiny.llava()
    refused({"model": torch.compile(model)}, "not compiled")
    model.model.language_model.compile()
    refused({"model": model}, "not compiled")


def test_the_collector_is_as_before() -> None:
    """What the caller froze is frozen afterwards, and nothing else."""
    frozen = gc.get_freeze_count()
    assert frozen, "by the fixture"
    later = [[] for _ in range(10_000)]
    with quiet_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen
    gc.unfreeze()
    with quiet_collector():
        assert not gc.isenabled()
    assert gc.get_freeze_count() == 0
    del later


def test_garbage_of_a_round_is_collected_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a contender leaves in a cycle must not pile up while the collector is off."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Node:
        def __init__(self) -> None:
            self.me = self

    def leave(*_: Any) -> None:
        nonlocal most
        alive.append(weakref.ref(Node()))
        most = max(most, sum(node() is not None for node in alive))

    model = tiny.llava()
    model.model.vision_tower.register_forward_hook(leave)
    measure(model, inputs_of("llava"), recipes.random(4), **QUICK | {"runs": 4})
    assert len(alive) > 2 * 4
    assert most <= 4 + 2, "the stages' runs and the first look are not tidied"


def test_an_attached_model_is_refused() -> None:
    model, inputs = tiny.llava(), inputs_of("llava")
    with tokenops.attach(model, recipes.random(0.5)) as handle:
        with pytest.raises(TokenOpsError, match="one attached already"):
            measure(model, inputs, recipes.random(0.5), **QUICK)
        assert handle.attached


def test_what_cannot_be_attached_is_refused_before_anything_is_timed() -> None:
    clock = Clock()
    model, inputs = tiny.qwen(), inputs_of("qwen2_5_vl")
    with pytest.raises(TokenOpsError, match="cls_attention|CLS"):
        measure(model, inputs, {"a": recipes.random(4), "b": recipes.cls_attention(4)}, timer=clock)
    assert clock.started == 0
