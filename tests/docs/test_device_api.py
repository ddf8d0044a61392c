"""Every example of docs/device-api.md does what the page says: curl, Python, C, JavaScript, a browser, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples import Section, sections
from tests.docs.page_device import page_device
from tests.docs.running_examples import Runner, missing_tools

SECTIONS = sections(Path(__file__).parents[2] / "docs" / "device-api.md")


class Page:
    """The page's sections, run in its order: an example may use what an earlier one has made."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._waiting = list(SECTIONS)
        self._failures: dict[str, BaseException] = {}

    def run_to(self, title: str) -> None:
        """Run a section, after those before it; raises what went wrong in it."""
        while self._waiting and title not in self._failures:
            section = self._waiting.pop(0)
            if not missing_tools(section):
                try:
                    self._runner.run(section)
                except AssertionError as error:
                    self._failures[section.title] = error
            if section.title == title:
                break
        if title in self._failures:
            raise self._failures[title]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with page_device() as device:
        yield Page(Runner(device))


@pytest.mark.parametrize("section", SECTIONS, ids=[section.title for section in SECTIONS])
def test_the_examples_do_what_the_page_says(section: Section, page: Page) -> None:
    if absent := missing_tools(section):
        pytest.skip(f"not installed: {', '.join(absent)}; the examples under '{section.title}' were NOT run")
    page.run_to(section.title)


def test_every_language_of_applications_is_on_the_page() -> None:
    languages = {example.language for section in SECTIONS for example in section.examples}
    assert languages == {"bash", "python", "c", "js", "html", "toml", "json", "text", "console"}
