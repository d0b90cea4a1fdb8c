"""What comes back: losses, logits_to_keep, hidden states, tuples; and what may come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations import reference as ref
from integrations import tiny
from torch import Tensor

import tokenops
from tokenops import Pipeline, Prune
from tokenops.selectors import TopK
from tokenops.selectors.scorers import LearnedScorer

families = pytest.mark.parametrize("family", ref.FAMILIES)
sides = pytest.mark.parametrize("side", ["left", "right"])


def labelled(family: str, side: str = "left") -> dict[str, Any]:
    inputs = tiny.batch(ref.prompts(family), side)
    hidden = (inputs["input_ids"] == tiny.IMAGE) | (inputs["input_ids"] == tiny.VIDEO)
    hidden |= inputs["attention_mask"] == 0
    hidden |= inputs["attention_mask"].cumsum(1) == 1  # nothing stands before the first token
    return inputs | {"labels": inputs["input_ids"].masked_fill(hidden, -100)}


@sides
@families
def test_loss_by_hand_on_the_kept_tokens(family: str, side: str) -> None:
    """Each labelled token is predicted by the kept token before it, in the dense reference."""
    model, inputs = ref.model(family), labelled(family, side)
    labels = inputs.pop("labels")
    keep = ref.expected_keep(model, inputs, 0.05)
    logits = ref.dense(model, ref.language_arguments(model, inputs), keep)
    losses = []
    for row in range(4):
        kept = keep[row].nonzero().flatten().tolist()
        for i in range(1, labels.shape[1]):
            if labels[row, i] == -100:
                continue
            before = [p for p in kept if p < i]
            losses.append(-logits[row, before[-1]].log_softmax(-1)[labels[row, i]])
    assert (~keep[:, :-1] & (labels[:, 1:] != -100)).any()
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.05)):
        got = model(**inputs, labels=labels).loss
        by_count = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    torch.testing.assert_close(got, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_count, torch.stack(losses).sum() / 100, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [1, 3, 200, torch.tensor([5, 9, 17])], ids=str)
@families
def test_logits_to_keep(family: str, keep: Any) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        whole = model(**inputs).logits
        some = model(**inputs, logits_to_keep=keep).logits
    want = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(some, want, atol=1e-6, rtol=1e-5)


@families
def test_hidden_states_at_the_original_length(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family))
    keep = ref.expected_keep(model, inputs, 0.3)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        out = model(**inputs, output_hidden_states=True)
        plain = model(**inputs).logits
    assert len(out.hidden_states) == 4
    assert all(h.shape == (*inputs["input_ids"].shape, 48) for h in out.hidden_states)
    embeds = ref.language_arguments(model, inputs)["inputs_embeds"]
    assert torch.equal(out.hidden_states[0][keep], embeds[keep])
    ref.close(model.lm_head(out.hidden_states[-1]), plain, 1e-6)


@families
def test_tuples(family: str) -> None:
    model, inputs = ref.model(family), labelled(family)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        out = model(**inputs)
        as_tuple = model(**inputs, return_dict=False)
        base = model.model(**{k: v for k, v in inputs.items() if k != "labels"}, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert isinstance(base, tuple)
    assert torch.equal(as_tuple[0], out.loss)
    assert torch.equal(as_tuple[1], out.logits)
    assert torch.equal(model.lm_head(base[0]), out.logits)


@families
def test_text_only_is_untouched(family: str) -> None:
    model = ref.model(family)
    inputs = tiny.batch([tiny.sample(family, [], 1), tiny.sample(family, [], 2, (7, 0))])
    with torch.no_grad():
        plain = model(**inputs).logits
        with tokenops.attach(model, ref.prune(0.3)) as handle:
            model(**tiny.sample(family, [0], 1))
            assert torch.equal(model(**inputs).logits, plain)
            assert len(handle.trace) == 1  # the last call that had visual tokens


@sides
@families
def test_embeddings_instead_of_ids(family: str, side: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family), side)
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)) as handle:
        want = model(**inputs).logits
        kept = [t.positions.tolist() for t in handle.trace]
        embedded = dict(inputs, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
        ids = embedded.pop("input_ids")
        if family == "qwen2_5_vl":  # without ids the model cannot number the positions itself
            places = ref.language_arguments(model, inputs)["position_ids"]
            embedded["position_ids"] = places
        got = model(**embedded).logits
        assert [t.positions.tolist() for t in handle.trace] == kept
    assert ids.shape == got.shape[:2]
    ref.close(got, want, 1e-6)


@families
def test_positional_arguments(family: str) -> None:
    model, inputs = ref.model(family), tiny.batch(ref.prompts(family)[:1])
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.3)):
        want = model(**inputs).logits
        ids = inputs.pop("input_ids")
        assert torch.equal(model.lm_head(model.model(ids, **inputs).last_hidden_state), want)


@families
def test_training_mode_and_no_grad_agree(family: str) -> None:
    model, inputs = ref.model(family), labelled(family)
    with tokenops.attach(model, ref.prune(0.3)):
        with torch.no_grad():
            want = model(**inputs).loss
        loss = model.train()(**inputs).loss
        loss.backward()
    assert torch.equal(loss, want)
    assert any(p.grad is not None and bool(p.grad.any()) for p in projector_of(model).parameters())


def projector_of(model: Any) -> Any:
    return model.model.visual.merger if hasattr(model.model, "visual") else model.model.multi_modal_projector


@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
@families
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model, inputs = ref.model(family).train(), labelled(family)
    pipeline = Pipeline(after_projector=Prune(TopK(LearnedScorer(48), 0.3)))

    def gradients() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        with tokenops.attach(model, pipeline) as handle:
            loss = model(**inputs, use_cache=False).loss
            kept = [t.index.tolist() for t in handle.trace]
            loss.backward()
            assert [t.index.tolist() for t in handle.trace] == kept
        return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain_loss, plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss, checkpointed = gradients()
    assert torch.equal(loss, plain_loss)
    assert len(plain) == len(checkpointed)
    for a, b in zip(checkpointed, plain, strict=True):
        ref.close(a, b, 1e-6)


@families
def test_a_hidden_part_of_an_image_is_neither_kept_nor_counted(family: str) -> None:
    """The caller's mask hides half of an image: its budget is that of the half seen."""
    model, inputs = ref.model(family), tiny.sample(family, [0], 1)
    inputs["position_ids"] = ref.language_arguments(model, inputs).get("position_ids")
    at = ref.units(inputs["input_ids"])[0][1]
    half = at[: len(at) // 2]
    inputs["attention_mask"][0, half] = 0
    with torch.no_grad(), tokenops.attach(model, ref.prune(0.25)) as handle:
        got = model(**inputs).logits
    (trace,) = handle.trace
    patches = trace.positions.tolist()
    assert patches
    assert not set(patches) & set(half)
    newline = getattr(model.model, "image_newline", None)
    keep = inputs["attention_mask"].bool()
    call = ref.language_arguments(model, inputs)
    seen = 0
    for line, end in ref.row_of_patches(call["inputs_embeds"][0], at, newline):
        seen += sum(p not in half for p in line)
        keep[0, line] = torch.tensor([p in patches for p in line])
        if end is not None and not any(p in patches for p in line):
            keep[0, end] = False
    assert trace.k == max(1, seen // 4)
    ref.close(ref.real(inputs, got), ref.real(inputs, ref.dense(model, call, keep)))
