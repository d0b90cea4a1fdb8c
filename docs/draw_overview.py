"""Draw the picture of the documentation's first page: one question, fewer and fewer visual tokens.

python docs/draw_overview.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import tokenops
from tokenops import pocket
from tokenops.analysis import highlight, kept_mask

PICTURE = Path(__file__).parent / "pictures" / "overview.png"
SEED, KEEPS = 5, (1.0, 0.3, 0.2, 0.1)
INK, RIGHT, WRONG = "#1b1b20", "#1a7f37", "#c0342b"


def main() -> None:
    """Write the picture: large type, so that it can be read on a phone."""
    model, processor = pocket.load()
    scene = pocket.scenes(1, "heldout", seed=SEED)[0]
    question = scene.questions()[0]
    inputs = processor(images=scene.image, text=question.prompt, return_tensors="pt")
    pixels = torch.from_numpy(scene.pixels.copy())
    figure = Figure(figsize=(7.2, 2.75), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"“{question.text.replace(' ?', '?')}”", fontsize=16, color=INK)
    for axis, keep in zip(figure.subplots(1, len(KEEPS)), KEEPS, strict=True):
        with tokenops.attach(model, pocket.visionselector(keep)) as handle:
            output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            trace = handle.trace[0]
        said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        axis.imshow(highlight(pixels, kept_mask(trace.grid, 12, 12), scale=4))
        axis.set_title(f"{trace.k} tokens", fontsize=14, color=INK)
        axis.set_xlabel(f"“{said}”", fontsize=15, color=RIGHT if said == question.answer else WRONG)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
