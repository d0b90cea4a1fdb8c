"""``link_distributions.py SITE NAME...``: link installed distributions, and what they need, into SITE."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> dict[str, metadata.Distribution]:
    """The distributions named and all they require here, extras included."""
    found: dict[str, metadata.Distribution] = {}
    queue = [Requirement(name) for name in names]
    while queue:
        wanted = queue.pop()
        key = re.sub(r"[-_.]+", "-", wanted.name).lower() + "".join(sorted(wanted.extras))
        if key in found:
            continue
        found[key] = distribution = metadata.distribution(wanted.name)
        for line in distribution.requires or []:
            need = Requirement(line)
            if need.marker is None or any(
                need.marker.evaluate({"extra": e}) for e in (wanted.extras or {""})
            ):
                queue.append(need)
    return found


def main(site: Path, names: list[str]) -> None:
    """Mirror the folders, link the files: namespace packages such as ``nvidia`` are shared by many."""
    distributions = closure(names)
    for distribution in distributions.values():
        for file in distribution.files or []:
            target = site / file
            if ".." not in file.parts and "__pycache__" not in file.parts and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(distribution.locate_file(file))
    print(f"linked {len(distributions)} distributions for {', '.join(names)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
