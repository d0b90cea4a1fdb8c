"""Stage 1 of the pocket VLM: trains the vision tower on dense patch labels.

    python examples/pocket/train_tower.py --steps 3000 --out build/pocket/tower.safetensors

Every patch within 8 pixels of a digit's centre learns the digit, its colour and its quadrant, the patch
holding the centre learns to say so, all others learn "nothing" (patches with a digit's outer strokes are
left free). Grey decoys are labelled like digits without a colour. The CLS token learns a census of the
picture: how many digits of each class are in it, grey or not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from tokenops.pocket.build import IMAGE_MEAN, IMAGE_STD, build_model
from tokenops.pocket.painting import COLOUR_NAMES, GREY, GRID, PATCH
from tokenops.pocket.scenes import QUADRANTS, Digit, Scene, make_scene, scenes

Batch = dict[str, Tensor]
NOTHING_WEIGHT = 0.1
FREE = -100


def number_of(digit: Digit) -> int:
    """The number of a digit's colour, -1 for grey."""
    return -1 if digit.colour == GREY else COLOUR_NAMES.index(digit.colour)


def labels_of(scene: Scene) -> dict[str, np.ndarray]:
    """Pixels (3, 96, 96) uint8, patch labels (144, 3) with 0 for nothing, centres (144,), census (10,)."""
    everything = scene.digits + scene.decoys
    table = np.array(
        [(d.label, number_of(d), QUADRANTS.index(d.quadrant)) for d in everything] + [(-1, -1, -1)]
    )
    patches = table[scene.patch_core] + 1
    patches[(scene.patch_core < 0) & (scene.patch_digit >= 0)] = FREE
    centre = np.zeros(len(patches), np.float32)
    centre[[int(y // PATCH) * GRID + int(x // PATCH) for x, y in (d.centre for d in everything)]] = 1.0
    census = np.bincount([d.label for d in everything], minlength=10).astype(np.float32)
    pixels = scene.pixels.transpose(2, 0, 1).copy()
    return {"pixels": pixels, "patches": patches, "centre": centre, "census": census}


class Scenes(IterableDataset[dict[str, np.ndarray]]):
    """Labelled training scenes without end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (labels_of(make_scene("train", (self.seed, index))) for index in count())


class TowerHeads(nn.Module):
    """Linear read-outs of the tower, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (11, len(COLOUR_NAMES) + 1, len(QUADRANTS) + 1, 1)
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        self.image = nn.Linear(width, 10)

    def forward(self, patches: Tensor, cls: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Logits per patch (B, 144, each size) and the census (B, 10)."""
        return self.patch(patches).split(self.sizes, dim=-1), self.image(cls)


def normalised(pixels: Tensor) -> Tensor:
    """What the processor makes of uint8 images (B, 3, 96, 96)."""
    return (pixels.float() / 255.0 - IMAGE_MEAN) / IMAGE_STD


def losses(outputs: tuple[tuple[Tensor, ...], Tensor], batch: Batch) -> dict[str, Tensor]:
    """The named, weighted parts of the tower's loss."""
    patch_logits, image_logits = outputs
    parts: dict[str, Tensor] = {}
    for index, name in enumerate(("digit", "colour", "quadrant")):
        logits = patch_logits[index].flatten(0, 1).float()
        weight = torch.ones(logits.shape[1])
        weight[0] = NOTHING_WEIGHT
        target = batch["patches"][..., index].flatten()
        parts[name] = F.cross_entropy(logits, target, weight=weight, ignore_index=FREE)
    heat = patch_logits[3].squeeze(-1).float()
    parts["centre"] = F.binary_cross_entropy_with_logits(heat, batch["centre"], pos_weight=torch.tensor(10.0))
    parts["census"] = 0.3 * F.mse_loss(image_logits.float(), batch["census"])
    return parts


def accuracies(outputs: tuple[tuple[Tensor, ...], Tensor], batch: Batch) -> dict[str, float]:
    """Accuracy at the digits' centre patches, of the heat-map's best patches, and of the CLS token."""
    patch_logits, image_logits = outputs
    at = batch["centre"] > 0
    result = {}
    for index, name in enumerate(("digit", "colour", "quadrant")):
        result[name] = (
            (patch_logits[index].argmax(-1) == batch["patches"][..., index])[at].float().mean().item()
        )
    nothing = batch["patches"][..., 0] == 0
    result["nothing"] = (patch_logits[0].argmax(-1) == 0)[nothing].float().mean().item()
    heat = patch_logits[3].squeeze(-1)
    cut = heat[at].quantile(0.05)
    result["centre_fp"] = (heat[nothing] > cut).float().mean().item()
    spread = batch["census"].var(0).mean()
    result["census_r2"] = 1.0 - (F.mse_loss(image_logits, batch["census"]) / spread).item()
    return result


def optimizers(tower: nn.Module, heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the encoder's matrices, AdamW for everything else."""
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2 and "embedding" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in (*tower.parameters(), *heads.parameters()) if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=2 * rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))]


def save(tower: nn.Module, path: Path) -> None:
    """Writes the tower's weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous().clone() for name, value in tower.state_dict().items()}, path)


def stack(labelled: list[dict[str, np.ndarray]]) -> Batch:
    """One batch of labelled scenes."""
    return {name: torch.from_numpy(np.stack([one[name] for one in labelled])) for name in labelled[0]}


def schedules_of(
    groups: list[torch.optim.Optimizer], steps: int
) -> list[torch.optim.lr_scheduler.LRScheduler]:
    """One cycle per optimizer, up to its own rate."""
    return [
        torch.optim.lr_scheduler.OneCycleLR(
            group, max_lr=group.param_groups[0]["lr"], total_steps=steps, pct_start=0.08, cycle_momentum=False
        )
        for group in groups
    ]


@torch.no_grad()
def held_out_line(tower: nn.Module, heads: nn.Module, batch: Batch) -> str:
    """Accuracies on held-out digits as one line."""
    hidden = tower(normalised(batch["pixels"]))
    scores = accuracies(heads(hidden.last_hidden_state[:, 1:], hidden.pooler_output), batch)
    return " ".join(f"{name}={value:.3f}" for name, value in scores.items())


def train(options: argparse.Namespace) -> nn.Module:
    """Trains the tower and writes it to ``options.out`` every 500 steps and at the end."""
    torch.set_num_threads(2)
    tower = build_model(seed=options.seed).model.vision_tower
    if options.init:
        tower.load_state_dict(load_file(options.init))
    heads = TowerHeads(tower.config.hidden_size)
    groups = optimizers(tower, heads, options.rate)
    schedules = schedules_of(groups, options.steps)
    size = options.batch_size
    source = Scenes(options.seed)
    loader = iter(DataLoader(source, size, num_workers=1, prefetch_factor=8, collate_fn=stack))
    held_out = stack([labels_of(scene) for scene in scenes(300, "heldout", options.seed)])
    start = time.time()
    for step in range(1, options.steps + 1):
        batch = next(loader)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = tower(normalised(batch["pixels"]))
            outputs = heads(hidden.last_hidden_state[:, 1:], hidden.pooler_output)
        parts = losses(outputs, batch)
        sum(parts.values(), torch.zeros(())).backward()
        for optimizer, schedule in zip(groups, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == options.steps:
            shown = " ".join(f"{name}={value.item():.3f}" for name, value in parts.items())
            print(f"{step} {time.time() - start:.0f}s loss {shown}", end=" | held-out ")
            print(held_out_line(tower, heads, held_out), flush=True)
        if step % 500 == 0 or step == options.steps:
            save(tower, options.out)
    return tower


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, default=None, help="start from these tower weights")
    parser.add_argument("--out", type=Path, default=Path("build/pocket/tower.safetensors"))
    train(parser.parse_args())
