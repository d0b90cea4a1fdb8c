"""Which tokens does a method keep, and what does the model then say? A page about one question.

    python examples/report.py
    python examples/report.py --images photo.jpg --question "What is on the table?" --out table.html

Runs on the pocket model that ships. For yours, change the lines marked "real".
"""

from __future__ import annotations

import argparse

from PIL import Image

from tokenops import pocket, recipes
from tokenops.analysis import report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="*", default=[], help="pictures; by default a held-out scene")
    parser.add_argument("--question", default="how many coloured digits ?")
    parser.add_argument("--keep", type=float, default=0.2)
    parser.add_argument("--runs", type=int, default=6, help="rounds of timing; 0 for none")
    parser.add_argument("--out", default="report.html")
    options = parser.parse_args()

    # real: AutoModelForImageTextToText.from_pretrained(ID, dtype="auto"), AutoProcessor.from_pretrained(ID)
    model, processor = pocket.load()

    images = [Image.open(path) for path in options.images] or [pocket.scenes(1, "heldout", seed=0)[0].image]
    pipelines = {
        # real: tokenops.load("folder"), the scorer that you trained
        "VisionSelector": pocket.visionselector(options.keep),
        "CLS attention": recipes.cls_attention(options.keep),
        "VisionZip": recipes.visionzip(options.keep),
        "DivPrune": recipes.divprune(options.keep),
        "random": recipes.random(options.keep),
    }
    page = report(model, processor, images, options.question, pipelines, runs=options.runs)
    for method in page.data["methods"]:
        print(f"{method['name']:15} {method['tokens_per_layer'][0]:5.0f} tokens   {method['answer']}")
    print(page.write(options.out))


if __name__ == "__main__":
    main()
