"""Stage 2 of the pocket VLM: projector and language model on the frozen tower, then evaluation and saving.

    python examples/pocket/train_vlm.py --tower build/pocket/tower.safetensors --out tokenops/pocket/weights

The tower's features of all training images are computed once. Every sequence asks up to eight questions in
random order; in half of the sequences each question sees the image only, in the others also what came
before. A random share of up to 30 % of each image's tokens is hidden from attention. An alignment loss
makes every projected patch name its digit, colour and quadrant through the tied output embedding.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from tokenops.pocket.build import (
    BOS,
    EOS,
    IMAGE_MEAN,
    IMAGE_STD,
    NOTHING,
    PAD,
    TOKEN_ID,
    build_model,
    build_processor,
)
from tokenops.pocket.evaluate import evaluate
from tokenops.pocket.painting import COLOUR_NAMES, GREY
from tokenops.pocket.scenes import DIGIT_WORDS, QUADRANTS, Scene, practice_scene, scenes

TOKENS = 144
PREFIX = 1 + TOKENS
BLOCK, FREE = 7, -100
LISTS = (DIGIT_WORDS, COLOUR_NAMES, QUADRANTS)
EOS_WEIGHT = 0.1


@dataclass(frozen=True)
class Cache:
    """Tower features (n, 144, D) fp16, patch words (n, 144, 3) int8 (0 nothing, FREE unlabelled), blocks.

    ``blocks[i]`` (questions, 7) are the token ids of scene i's questions, each with its answer and end of
    sequence; ``answers[i]`` (questions,) the place of the answer in the block.
    """

    features: Tensor
    words: Tensor
    blocks: list[np.ndarray]
    answers: list[np.ndarray]


def tokens_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (questions, 7), padded on the right, and where the answers stand (questions,)."""
    asked = scene.questions()
    blocks = np.full((len(asked), BLOCK), TOKEN_ID[PAD], np.int64)
    places = np.zeros(len(asked), np.int64)
    for row, question in enumerate(asked):
        words = [*question.text.split(), question.answer, EOS]
        blocks[row, : len(words)] = [TOKEN_ID[word] for word in words]
        places[row] = len(words) - 2
    return blocks, places


def patch_words(scene: Scene) -> np.ndarray:
    """Digit, colour and quadrant each patch names (144, 3): 0 for none, FREE at a digit's outer strokes.

    A decoy has no colour.
    """
    table = []
    for d in scene.digits + scene.decoys:
        colour = 0 if d.colour == GREY else COLOUR_NAMES.index(d.colour) + 1
        table.append((d.label + 1, colour, QUADRANTS.index(d.quadrant) + 1))
    words = np.array([*table, (0, 0, 0)])[scene.patch_core]
    words[(scene.patch_core < 0) & (scene.patch_digit >= 0)] = FREE
    return words.astype(np.int8)


@torch.no_grad()
def build_cache(tower: nn.Module, number: int, seed: int) -> Cache:
    """Draws ``number`` training scenes and runs the tower over them."""
    features, words, blocks, answers = [], [], [], []
    for start in range(0, number, 64):
        batch = [practice_scene(seed, 1_000_000 + index) for index in range(start, min(start + 64, number))]
        pixels = torch.from_numpy(np.stack([scene.pixels for scene in batch])).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 255.0 - IMAGE_MEAN) / IMAGE_STD
        features.append(tower(pixels).last_hidden_state[:, 1:].half())
        words.append(torch.from_numpy(np.stack([patch_words(scene) for scene in batch])))
        for scene in batch:
            block, place = tokens_of(scene)
            blocks.append(block)
            answers.append(place)
    return Cache(torch.cat(features), torch.cat(words), blocks, answers)


def draw_questions(
    cache: Cache, rows: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Token ids and labels (B, number * 7); the count question is always among those drawn."""
    ids = np.full((len(rows), number, BLOCK), TOKEN_ID[PAD], np.int64)
    labels = np.full_like(ids, FREE)
    for line, row in enumerate(rows):
        blocks, places = cache.blocks[row], cache.answers[row]
        chosen = np.append(rng.permutation(len(blocks) - 1)[: number - 1], len(blocks) - 1)
        rng.shuffle(chosen)
        slots, at = np.arange(len(chosen)), places[chosen]
        ids[line, : len(chosen)] = blocks[chosen]
        labels[line, slots, at] = blocks[chosen, at]
        labels[line, slots, at + 1] = TOKEN_ID[EOS]
    return torch.from_numpy(ids.reshape(len(rows), -1)), torch.from_numpy(labels.reshape(len(rows), -1))


def visibility(ids: Tensor, chained: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean attention mask (B, 1, L, L) and position ids (B, L) for prefix + questions.

    A question sees the prefix without ``dropped`` (B, 144) and itself; where ``chained`` (B,) also all
    before it.
    """
    rows, length = ids.shape[0], PREFIX + ids.shape[1]
    real = torch.cat([torch.ones(rows, 1, dtype=torch.bool), ~dropped, ids != TOKEN_ID[PAD]], dim=1)
    block = torch.cat([torch.full((PREFIX,), -1), torch.arange(ids.shape[1]) // BLOCK])
    own = (block[:, None] == block[None, :]) | (block[None, :] < 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal & real[:, None, :] & (own | chained[:, None, None])
    steps = torch.where(
        chained[:, None], (ids != TOKEN_ID[PAD]).cumsum(1) - 1, torch.arange(ids.shape[1]) % BLOCK
    )
    positions = torch.cat([torch.arange(PREFIX).expand(rows, -1), PREFIX + steps.clamp(min=0)], dim=1)
    return mask[:, None], positions


def alignment_loss(projected: Tensor, words: Tensor, embedding: Tensor) -> Tensor:
    """Mean cross-entropy of naming digit, colour and quadrant from a projected patch (B, 144, D)."""
    total = projected.new_zeros((), dtype=torch.float32)
    for index, names in enumerate(LISTS):
        ids = [TOKEN_ID[NOTHING], *(TOKEN_ID[name] for name in names)]
        logits = (projected @ embedding[ids].T).float().flatten(0, 1)
        weight = torch.ones(len(ids))
        weight[0] = 0.1
        total = total + F.cross_entropy(
            logits, words[..., index].flatten().long(), weight=weight, ignore_index=FREE
        )
    return total / len(LISTS)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of answers and, lightly, of the end of sequence: logits (B, Q, V), labels (B, Q)."""
    weight = torch.ones(logits.shape[-1])
    weight[TOKEN_ID[EOS]] = EOS_WEIGHT
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight=weight, ignore_index=FREE)


def batch_loss(
    model: LlavaForConditionalGeneration, cache: Cache, rows: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(answer loss, alignment loss) of one batch of scenes."""
    ids, labels = draw_questions(cache, rows, 8, rng)
    rates = torch.from_numpy(rng.uniform(0.0, 0.3, (len(rows), 1))).float() * torch.from_numpy(
        rng.random((len(rows), 1)) < 0.7
    )
    dropped = torch.from_numpy(rng.random((len(rows), TOKENS))).float() < rates
    mask, positions = visibility(ids, torch.from_numpy(rng.random(len(rows)) < 0.5), dropped)
    table = model.get_input_embeddings()
    with torch.autocast("cpu", torch.bfloat16):
        projected = model.model.multi_modal_projector(cache.features[rows].float())
        first = table(torch.full((len(rows), 1), TOKEN_ID[BOS]))
        embeds = torch.cat([first, projected.to(first.dtype), table(ids)], dim=1)
        hidden = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[:, PREFIX:-1])
        aligned = alignment_loss(projected, cache.words[rows], table.weight)
    return answer_loss(logits, labels[:, 1:]), aligned


def optimizers(model: LlavaForConditionalGeneration, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for projector, norms and the (tied) embedding."""
    matrices = [p for n, p in model.model.language_model.layers.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=2 * rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))]


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes model (weights in float16, computing in float32 unless asked otherwise) and processor."""
    model.save_pretrained(
        folder, state_dict={name: value.half() for name, value in model.state_dict().items()}
    )
    build_processor().save_pretrained(folder)


def train(model: LlavaForConditionalGeneration, cache: Cache, options: argparse.Namespace) -> None:
    """Trains projector and language model in place; writes them every 200 steps and at the end."""
    groups = optimizers(model, options.rate)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            group, group.param_groups[0]["lr"], options.steps, pct_start=0.08, cycle_momentum=False
        )
        for group in groups
    ]
    rng = np.random.default_rng(options.seed)
    processor, held_out = build_processor(), scenes(60, "heldout", seed=77)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = time.time()
    for step in range(1, options.steps + 1):
        rows = rng.integers(0, len(cache.features), options.batch_size)
        answered, aligned = batch_loss(model, cache, rows, rng)
        (answered + aligned).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, schedule in zip(groups, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == options.steps:
            save(model, options.out)
            losses = f"answer={answered.item():.3f} aligned={aligned.item():.3f}"
            report = evaluate(model, processor, held_out)
            print(f"{step} {time.time() - start:.0f}s {losses} {report}", flush=True)


def main() -> None:
    """Runs the stage from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tower", type=Path, default=Path("build/pocket/tower.safetensors"))
    parser.add_argument("--init", type=Path, default=None, help="start from this model's language side")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tokenops/pocket/weights"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    model = build_model(seed=options.seed)
    if options.init:
        model = LlavaForConditionalGeneration.from_pretrained(options.init, dtype=torch.float32)
    model.model.vision_tower.load_state_dict(load_file(options.tower))
    model.model.vision_tower.requires_grad_(False)
    train(model, build_cache(model.model.vision_tower, options.images, options.seed), options)


if __name__ == "__main__":
    main()
