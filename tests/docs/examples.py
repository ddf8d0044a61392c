"""The fenced examples of a page, by the heading under which they stand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Example:
    """One fenced block.

    Args:
        line: Where in the page it begins, from 1.
    """

    language: str
    code: str
    line: int


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the examples under it, up to the next heading of any level."""

    title: str
    examples: tuple[Example, ...]


def sections(page: Path) -> list[Section]:
    """The sections of a page that have examples, in its order."""
    text = page.read_text("utf-8")
    fences = list(_FENCE.finditer(text))
    inside = [range(fence.start(), fence.end()) for fence in fences]
    headings = [
        (found.start(), found[1])
        for found in _HEADING.finditer(text)
        if not any(found.start() in span for span in inside)  # a comment in a shell example
    ]
    ends = [start for start, _ in headings[1:]] + [len(text)]
    found_sections = []
    for (start, title), end in zip(headings, ends, strict=True):
        examples = tuple(
            Example(fence[1], fence[2], text.count("\n", 0, fence.start()) + 1)
            for fence in fences
            if start < fence.start() < end
        )
        if examples:
            found_sections.append(Section(title, examples))
    return found_sections
