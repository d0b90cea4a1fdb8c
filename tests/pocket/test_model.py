"""The shipped model: loads, batches with left padding, answers held-out questions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import tokenops
from tokenops import pocket
from tokenops.errors import TokenOpsError
from tokenops.pocket.build import TOKEN_ID, VOCABULARY
from tokenops.pocket.evaluate import encode, kept_logits
from tokenops.pocket.references import best, digit_scores, oracle_scores, random_scores


@pytest.fixture(scope="module")
def loaded():
    return pocket.load()


@pytest.fixture(scope="module")
def held_out():
    return pocket.scenes(40, "heldout", seed=9)


def test_import_is_light():
    code = "import sys, tokenops.pocket; sys.exit('transformers' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_are_small(loaded):
    model, _ = loaded
    assert sum(p.numel() for p in model.parameters()) <= 1_400_000
    assert (pocket.weights_dir() / "model.safetensors").stat().st_size < 3_000_000
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not model.training


def test_processor_round_trip(loaded, held_out):
    _, processor = loaded
    questions = [scene.questions()[index] for scene, index in zip(held_out, (0, -2), strict=False)]
    batch = encode(processor, held_out[:2], questions)
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert (batch["input_ids"] == TOKEN_ID["<image>"]).sum(1).tolist() == [144, 144]
    assert batch["attention_mask"][:, 0].tolist() == [1, 0]
    assert (batch["input_ids"][:, -1] == TOKEN_ID["?"]).all()
    text = processor.tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True)
    assert text.split()[-4:] == questions[1].text.split()
    assert [processor.tokenizer.convert_tokens_to_ids(word) for word in VOCABULARY] == list(
        range(len(VOCABULARY))
    )


def test_batch_equals_rows(loaded, held_out):
    model, processor = loaded
    questions = [scene.questions()[index] for scene, index in zip(held_out, (0, -2), strict=False)]
    with torch.no_grad():
        both = model(**encode(processor, held_out[:2], questions)).logits[:, -1]
        for row in range(2):
            inputs = encode(processor, held_out[row : row + 1], questions[row : row + 1])
            torch.testing.assert_close(
                model(**inputs).logits[:, -1], both[row : row + 1], rtol=1e-4, atol=1e-4
            )


def test_generate_answers_and_stops(loaded, held_out):
    model, processor = loaded
    question = held_out[0].questions()[-1]
    inputs = encode(processor, held_out[:1], [question])
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.convert_ids_to_tokens(out.tolist()) == [question.answer, "<eos>"]


def test_keeping_all_patches_changes_nothing(loaded, held_out):
    model, processor = loaded
    inputs = encode(processor, held_out[:3], [scene.questions()[0] for scene in held_out[:3]])
    with torch.no_grad():
        full = model(**inputs).logits[:, -1]
        torch.testing.assert_close(kept_logits(model, inputs, torch.arange(144).expand(3, -1)), full)


def test_held_out_accuracy(loaded, held_out):
    report = pocket.evaluate(*loaded, held_out)
    assert report.total >= 200
    assert report.mean >= 0.9


def test_tokens_matter(loaded, held_out):
    at_random = pocket.evaluate_kept(*loaded, held_out, best(random_scores(held_out), 14)).accuracy["what"]
    at_centres = pocket.evaluate_kept(*loaded, held_out, best(oracle_scores(held_out), 14)).accuracy["what"]
    assert at_random + 0.25 < at_centres


def test_references_prefer_coloured_digits(held_out):
    for scene, scores in zip(held_out, digit_scores(held_out), strict=True):
        asked = (scene.patch_digit >= 0) & (scene.patch_digit < len(scene.digits))
        top = best(scores[None], int(asked.sum()))[0]
        assert asked[top.numpy()].all()


def test_attached_selection_equals_dropping_by_hand(loaded, held_out):
    model, processor = loaded
    some = held_out[:6]
    inputs = encode(processor, some, [scene.questions()[i % 3] for i, scene in enumerate(some)])
    with torch.no_grad(), tokenops.attach(model, pocket.visionselector(keep=0.1)) as handle:
        attached = model(**inputs).logits[:, -1]
        kept = torch.stack([trace.index for trace in handle.trace])
        scores = handle.trace[0].scores
    assert kept.shape == (6, 14)
    assert scores.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(attached, kept_logits(model, inputs, kept), rtol=1e-4, atol=1e-4)


def test_the_trained_scorer_finds_the_coloured_digits(loaded, held_out):
    model, processor = loaded
    inputs = encode(processor, held_out, [scene.questions()[0] for scene in held_out])
    with torch.no_grad(), tokenops.attach(model, pocket.visionselector(keep=0.1)) as handle:
        model(**inputs)
        found = [
            index in scene.patch_digit[trace.index.numpy()]
            for scene, trace in zip(held_out, handle.trace, strict=True)
            for index in range(len(scene.digits))
        ]
    assert sum(found) / len(found) > 0.9


def test_wrong_patches_are_refused(loaded, held_out):
    with pytest.raises(TokenOpsError, match="one row of patches"):
        pocket.evaluate_kept(*loaded, held_out[:2], torch.arange(14).expand(3, -1))
    with pytest.raises(TokenOpsError, match="patch indices"):
        pocket.evaluate_kept(*loaded, held_out[:1], torch.tensor([[144]]))


def test_training_a_scorer_leaves_the_model_as_it_was():
    from tokenops.integrations import attached
    from tokenops.pocket.scorer_training import train_scorer

    model, processor = pocket.load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pipeline = train_scorer(model, processor, steps=1, batch=2, progress=False)
    assert attached(model) is None
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not pipeline.training
