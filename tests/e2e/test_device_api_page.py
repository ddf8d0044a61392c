"""Every example of docs/device-api.md, run in the page's order against a real agent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.config import AgentConfig
from tests.e2e.running_agent import PATIENCE_S, Agent, agent, shoal_agent
from tests.fakes.packages import make_package

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_PIXELS = re.compile(r"(?<=\[\n)[\d,\s]+(?=\])")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Agent]:
    package = make_package(tmp_path / "package")
    with agent(tmp_path / "device") as one:
        assert shoal_agent("install", "--config", one.settings, package.folder).returncode == 0
        one.start()
        yield one


@pytest.fixture
def page(repository: Path) -> list[tuple[str, str]]:
    """Language and text of each example."""
    return _BLOCK.findall((repository / "docs" / "device-api.md").read_text())


def run(language: str, code: str) -> str:
    """What an example prints; it must succeed."""
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def here(code: str, device: Agent) -> str:
    """The example for the test's agent and its model, which takes an image's 64 pixels from 0 to 1, on one axis."""
    code = code.replace("localhost:8500", device.address).replace(", 1, 8, 8]", ", 64]")
    code = code.replace("(2, 1, 8, 8)", "(2, 64)").replace("16 * ", "")
    return _PIXELS.sub(lambda pixels: re.sub(r"\d+", lambda one: str(int(one[0]) / 16), pixels[0]), code)


def answers(printed: str) -> list[Any]:
    """The JSON values that stand one after the other in what an example printed."""
    found, at = [], 0
    while at < len(printed):
        value, at = json.JSONDecoder().raw_decode(printed, at)
        found.append(value)
    return found


def shape_of(value: Any) -> Any:
    """The members of a JSON value, without what differs from machine to machine."""
    if isinstance(value, dict):
        return {key: shape_of(member) for key, member in value.items() if key != "data"}
    if isinstance(value, list):
        return [shape_of(member) for member in value]
    return type(value)


def test_every_example_does_what_the_page_says(device: Agent, page: list[tuple[str, str]]) -> None:
    printed, ran = "", 0
    for language, code in page:
        if language in ("bash", "python"):
            printed = run(language, here(code, device))
            ran += 1
            if language == "bash":
                assert ('{"error"' in printed) == ('"shape": [1, 3]' in code), printed
        elif language == "json":
            shown, found = json.loads(here(code, device)), answers(printed)[-1]
            assert shape_of(found) == shape_of(shown)
            if "id" not in shown:  # the model's own figures aside, the page shows what is answered to the letter
                assert found == shown
    assert ran >= 7


def test_the_settings_on_the_page_are_settings(page: list[tuple[str, str]]) -> None:
    settings = [code for language, code in page if language == "toml"]
    assert settings
    for text in settings:
        msgspec.convert(tomllib.loads(text), AgentConfig)
