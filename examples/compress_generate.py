"""How do I generate with fewer visual tokens?

    python examples/compress_generate.py --keep 0.2

Runs on the pocket model that ships. For yours, change the line marked "real".
"""

from __future__ import annotations

import argparse

import tokenops
from tokenops import pocket, recipes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.2)
    options = parser.parse_args()
    # real: AutoModelForImageTextToText.from_pretrained(ID).eval(), AutoProcessor.from_pretrained(ID)
    model, processor = pocket.load()
    scenes = pocket.scenes(4, "heldout", seed=1)
    prompts = [scene.questions()[i].prompt for i, scene in enumerate(scenes)]
    images = [scene.image for scene in scenes]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")

    def answers() -> list[str]:
        rows = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        return [word.strip() for word in processor.batch_decode(rows, skip_special_tokens=True)]

    whole = answers()
    with tokenops.attach(model, recipes.divprune(options.keep)) as handle:
        fewer, traces = answers(), handle.trace
    for i, trace in enumerate(traces):
        question = scenes[i].questions()[i]
        print(f"{question.text:34} {whole[i]:6} with {trace.k:3} of {trace.n} tokens: {fewer[i]:6}", end=" ")
        print(f"(truth: {question.answer})")


if __name__ == "__main__":
    main()
