"""What stands in the pages of the documentation: code blocks, headings and links, as GitHub reads them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# Beside what they are about.
DEPLOYMENTS = sorted(ROOT.glob("configs/deploy/*/README.md"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what kind it is, and its text."""

    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(kind, text) for kind, text in _BLOCK.findall(page)]


def anchors(page: str) -> set[str]:
    """Return the names by which the headings of a page can be linked to."""
    found: set[str] = set()
    for heading in _HEADING.findall(_BLOCK.sub("", page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        while (f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(f"{name}-{number}" if number else name)
    return found


def links(page: str) -> list[str]:
    """Return the targets of the links and images of a page."""
    return _LINK.findall(_BLOCK.sub("", page))
