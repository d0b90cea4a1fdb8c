"""Attaching routes and taking them away: nothing left behind, copies, threads, errors, compilation."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import routed, tiny
from integrations.test_lifecycle import Boom, assert_unchanged, run, snapshot
from integrations.test_refusals import refuse
from torch import Tensor, nn

import tokenops
from tokenops import Pipeline
from tokenops.integrations import attached
from tokenops.routers import constant, per_layer
from tokenops.routers.route import Route
from tokenops.selectors.scorers import LearnedScorer, last_attention, next_attention

KEEPS = (0.6, None, 0.3)
LATER = (None, 0.6, 0.3)
SCORERS = {"direction": routed.direction, "last": last_attention, "next": next_attention}
families = pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=routed.slow) for f in ref.FAMILIES if f != "llava")]
)
scorers = pytest.mark.parametrize(
    "scorer", ["direction", "next", pytest.param("last", marks=pytest.mark.slow)]
)


@scorers
@families
def test_removal_leaves_no_trace(family: str, scorer: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    plain = run(model, inputs)
    before = snapshot(model)
    configs = [layer.self_attn.config for layer in model.model.language_model.layers]
    handle = tokenops.attach(model, routed.routed(LATER, scorer=SCORERS[scorer]))
    assert list(model.state_dict()) == list(ref.model(family).state_dict())
    layer = model.model.language_model.layers[0]
    assert inspect.signature(layer.forward) == inspect.signature(type(layer).forward.__get__(layer))
    run(model, inputs)
    model.generate(**inputs, max_new_tokens=2, do_sample=False)
    handle.remove()
    assert_unchanged(model, before)
    assert all(
        a.self_attn.config is b for a, b in zip(model.model.language_model.layers, configs, strict=True)
    )
    assert torch.equal(run(model, inputs), plain)


@families
def test_a_later_wrapper_around_a_layer_makes_removal_refuse(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    handle = tokenops.attach(model, routed.routed(KEEPS))
    want = run(model, inputs)
    layer = model.model.language_model.layers[1]
    ours = layer.__dict__["forward"]
    layer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(tokenops.TokenOpsError, match="later wrapper"):
        handle.remove()
    assert torch.equal(run(model, inputs), want)
    object.__setattr__(layer, "forward", ours)
    handle.remove()


@pytest.mark.parametrize("where", ["attention", "scorer"])
@scorers
@families
def test_an_exception_inside_a_layer(family: str, scorer: str, where: str) -> None:
    """Nothing armed, nothing running, nothing noted is left for the next call."""
    model, inputs, text = ref.model(family), routed.batch_of(family), tiny.sample(family, [], 3)
    alive = [True]

    def boom(*_: Any) -> None:
        if not alive[0]:
            raise Boom

    def score(x: Tensor, **signals: Tensor) -> Tensor:
        if where == "scorer":
            boom()
        return SCORERS[scorer](x, **signals)

    score.__signature__ = inspect.signature(SCORERS[scorer])  # type: ignore[attr-defined]
    attention = model.model.language_model.layers[1].self_attn
    hook = attention.q_proj.register_forward_pre_hook(boom) if where == "attention" else None
    plain, plain_text = run(model, inputs), run(model, text)
    with tokenops.attach(model, routed.routed(LATER, scorer=score)):
        want, want_text = run(model, inputs), run(model, text)
        assert torch.equal(want_text, plain_text)
        for _ in range(2):
            alive[0] = False
            with pytest.raises(Boom):
                run(model, inputs)
            alive[0] = True
            assert torch.equal(run(model, text), plain_text)
            assert torch.equal(run(model, inputs), want)
    assert torch.equal(run(model, inputs), plain)
    if hook is not None:
        hook.remove()


@scorers
@families
def test_a_copy_runs_its_own_weights(family: str, scorer: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with tokenops.attach(model, routed.routed(LATER, scorer=SCORERS[scorer])) as handle:
        want, kept = run(model, inputs), [t.index.tolist() for t in handle.trace]
        twin = copy.deepcopy(model)
        own = attached(twin)
        assert own is not None
        assert own.trace == ()
        assert torch.equal(run(twin, inputs), want)
        with torch.no_grad():
            for p in twin.model.language_model.layers[1].parameters():
                p.mul_(torch.linspace(0.5, 1.5, p.numel()).view(p.shape))
        assert not torch.equal(run(twin, inputs), want)
        assert [t.index.tolist() for t in handle.trace] == kept
        assert torch.equal(run(model, inputs), want)
        own.remove()
        assert "forward" not in vars(twin.model.language_model.layers[0])
        assert twin.model.language_model.layers[0].self_attn.config._attn_implementation == "sdpa"
        assert torch.equal(run(model, inputs), want)


@families
def test_copying_after_a_forward_with_gradients(family: str) -> None:
    model, inputs = ref.model(family), routed.batch_of(family)
    with tokenops.attach(model, Pipeline(layers=Route(LearnedScorer(48), 0.5))):
        want = model(**inputs).logits
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, want)


@scorers
def test_two_threads_share_a_model(scorer: str) -> None:
    model = ref.model("llava")
    calls = [routed.batch_of("llava"), tiny.sample("llava", [1, 0], 9), tiny.sample("llava", [], 3)]
    problems: list[str] = []
    with tokenops.attach(model, routed.routed(LATER, scorer=SCORERS[scorer])) as handle:
        want = []
        for inputs in calls:
            want.append((run(model, inputs), [t.index.tolist() for t in handle.trace]))

        def work(number: int) -> None:
            for _ in range(6):
                got = run(model, calls[number])
                kept = [t.index.tolist() for t in handle.trace]
                if not torch.allclose(got, want[number][0], atol=1e-5):
                    problems.append(f"logits of call {number}")
                if number < 2 and kept != want[number][1]:
                    problems.append(f"trace of call {number}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_nothing_of_a_call_stays_alive() -> None:
    """Masks and hidden states of the last call are not kept for its trace."""
    model, inputs = ref.model("llava"), routed.batch_of("llava")
    with tokenops.attach(model, routed.routed(LATER, scorer=last_attention)) as handle:
        model(**inputs)
        routing = handle._state.routing
        assert routing is not None
        assert not routing.masks
        assert all(t.scores is None or not t.scores.requires_grad for t in handle.trace)


def wants(x: Tensor, *, gaze: Tensor) -> Tensor:
    raise AssertionError


def crashes(x: Tensor) -> Tensor:
    raise RuntimeError("mat1 and mat2")


BAD = {
    "signal": (lambda: Route(wants, 0.5), "gaze"),
    "vision": (lambda: Route(tokenops.selectors.scorers.cls_attention, 0.5), "cls_attention"),
    "crash": (lambda: Route(crashes, 0.5), "mat1"),
    "shape": (lambda: Route(lambda x: x, 0.5), "scores"),
    "width": (lambda: Route(LearnedScorer(32), 0.5), "32"),
    "device": (lambda: Route(LearnedScorer(48).to("meta"), 0.5), "meta"),
    "depth": (lambda: Route(routed.direction, per_layer([0.5, 0.5])), "3 layers"),
    "no scorer": (lambda: Route({0: LearnedScorer(48)}, 0.5), "a scorer for layer 1"),
    "scorer beyond": (lambda: Route({i: LearnedScorer(48) for i in range(4)}, 0.5), "3 layers"),
    "first": (lambda: Route(last_attention, constant(0.5)), "layer 1"),
    "no route": (lambda: nn.Identity(), "a Route"),
}


@pytest.mark.parametrize("case", BAD)
@families
def test_a_route_that_does_not_fit(family: str, case: str) -> None:
    make, match = BAD[case]
    refuse(ref.model(family), Pipeline(layers=make()), match)


@families
def test_a_family_whose_layers_cannot_be_read_is_refused_before(family: str) -> None:
    """Windows of attention would count kept tokens, not tokens."""
    model = ref.model(family)
    model.model.language_model.config.layer_types = ["sliding_attention"] * 3
    refuse(model, routed.routed(0.5), "full attention")


def compiled_gives_eager(family: str, scorer: Any) -> None:
    torch._dynamo.reset()
    model = ref.model(family)
    calls = [
        tiny.batch([tiny.sample(family, [0], 1), tiny.sample(family, [3], 2)]),
        tiny.sample(family, [1, 3], 3),
    ]
    with torch.no_grad(), tokenops.attach(model, routed.routed(LATER, scorer=scorer)) as handle:
        want = []
        for inputs in calls:
            want.append((run(model, inputs), [t.index.tolist() for t in handle.trace]))
        compiled = torch.compile(model, backend="aot_eager", dynamic=False)
        for inputs, (logits, kept) in zip([*calls, calls[0]], [*want, want[0]], strict=True):
            ref.close(run(compiled, inputs), logits)
            assert [t.index.tolist() for t in handle.trace] == kept
    torch._dynamo.reset()


@pytest.mark.slow
@scorers
@families
def test_a_compiled_model_gives_what_the_eager_one_does(family: str, scorer: str) -> None:
    compiled_gives_eager(family, SCORERS[scorer])


@pytest.mark.slow
@families
def test_attaching_to_a_warm_compiled_model(family: str) -> None:
    torch._dynamo.reset()
    model, inputs = ref.model(family), tiny.sample(family, [1, 3], 3)
    plain = run(model, inputs)
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    ref.close(run(compiled, inputs), plain)
    with tokenops.attach(model, routed.routed(KEEPS)):
        want = run(model, inputs)
        ref.close(run(compiled, inputs), want)
    ref.close(run(compiled, inputs), plain)
    torch._dynamo.reset()
