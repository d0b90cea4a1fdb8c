"""Check a built site, offline: links and anchors, alt texts, broken tables, nothing from outside.

python docs/_ext/site_check.py docs/_build/html
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_OUTSIDE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//[^)'\"]*")


@dataclass
class Page(HTMLParser):
    """What a page defines and asks for."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[tuple[str, str]] = field(default_factory=list)
    no_alt: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    starts: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a tag."""
        self.starts = tag == "p"
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if _LOADS.get(tag) in values and values.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append((tag, values[_LOADS[tag]]))
        if tag == "img" and not values.get("alt", "").strip():
            self.no_alt.append(values.get("src", ""))

    def handle_endtag(self, tag: str) -> None:
        """What follows is not the start of a paragraph."""
        self.starts = False

    def handle_data(self, data: str) -> None:
        """A paragraph whose text starts with a bar is a table that was not read as one."""
        if self.starts and data.strip():
            self.starts = False
            if data.lstrip().startswith("|"):
                self.broken.append(" ".join(data.split()))


@cache
def read(path: Path) -> Page:
    """A page of the site."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> list[str]:
    """Everything that is wrong with the site, one line each."""
    read.cache_clear()
    found = []
    pages = sorted(site.rglob("*.html"))
    if not pages:
        return [f"{site}: no pages"]
    for path in pages:
        page, name = read(path), path.relative_to(site)
        found += [f"{name}: no alt text: {source[:80]}" for source in page.no_alt]
        found += [f"{name}: a broken table: {text[:80]}" for text in page.broken]
        found += [f"{name}: {said}" for link in page.links if (said := _link(path, link))]
        found += [f"{name}: {said}" for tag, link in page.loads if (said := _load(path, tag, link))]
    for path in sorted(site.rglob("*.css")):
        styles = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(site)}: from outside: {m[0]}" for m in _OUTSIDE.finditer(styles)]
    return list(dict.fromkeys(found))


def _link(path: Path, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme == "mailto":
        return None
    if parts.scheme or parts.netloc:
        fine = parts.scheme in ("http", "https") and "." in parts.netloc and not re.search(r"\s", link)
        return None if fine else f"no address: {link}"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return f"dead link: {link}"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in read(target).anchors:
        return f"no such anchor: {link}"
    return None


def _load(path: Path, tag: str, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme == "data" or link.startswith("#"):
        return None
    if parts.scheme or parts.netloc:
        return f"{tag} from outside: {link}"
    there = (path.parent / unquote(parts.path)).resolve().is_file()
    return None if there else f"{tag} is missing: {link}"


def main(site: Path) -> int:
    """Print what is wrong; 1 if anything is."""
    found = problems(site)
    pages = sum(1 for _ in site.rglob("*.html"))
    print("\n".join(found) or f"{pages} pages: links, anchors, pictures, tables fine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
