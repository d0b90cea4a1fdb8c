"""How do I run a ragged batch without computing on its padding?

    python examples/fast_attention.py

Prompts with and without an image, left-padded: transformers' attention "tokenops" takes the padding out.
"""

from __future__ import annotations

import argparse
import time

import torch

from tokenops import pocket
from tokenops.integrations import register_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model, processor = pocket.load()  # real: from_pretrained(ID, attn_implementation=...)
    scenes = pocket.scenes(2, "heldout", seed=2)
    prompts = [scene.questions()[0].prompt for scene in scenes]
    texts = [*prompts, *(prompt.replace("<image>", "") for prompt in prompts * 3)]
    images = [scene.image for scene in scenes]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    real = inputs["attention_mask"].bool()
    register_attention()
    seconds: dict[str, list[float]] = {"sdpa": [], "tokenops": []}
    logits = {}
    for _ in range(options.rounds + 1):  # in turn; the first round warms up
        for name, took in seconds.items():
            model.set_attn_implementation(name)
            start = time.process_time()
            with torch.no_grad():
                logits[name] = model(**inputs).logits
            took.append(time.process_time() - start)
    apart = (logits["sdpa"] - logits["tokenops"])[real].abs().max()
    print(f"padding {1 - real.float().mean():.0%}, largest difference at real tokens {apart:.1e}")
    ratios = sorted(a / b for a, b in zip(seconds["sdpa"][1:], seconds["tokenops"][1:], strict=True))
    print(f"sdpa / tokenops, whole model: {ratios[len(ratios) // 2]:.2f} (this model is small)")


if __name__ == "__main__":
    main()
