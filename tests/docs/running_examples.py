"""Runs the examples of a section one after the other, each as its reader would, and compares what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import locate
from tests.docs.examples import Example, Section
from tests.docs.likeness import answers, difference
from tests.docs.page_device import PageDevice
from tests.e2e.browser import browser

_PATIENCE_S = 60.0
# What a language's examples need; shell examples say it themselves.
_TOOLS = {"bash": ("bash",), "c": ("cc",), "js": ("node",), "html": ("chromium", "chromedriver")}
_COMMANDS = re.compile(r"\b(curl|cc|openssl|gzip|sha256sum)\b")
_NODE_MAJOR = 18  # the first with fetch
# Commands for a machine with tools that no test can ask for.
NOT_RUN = frozenset({"console"})
SHOWN = frozenset({"json", "text"})


def missing_tools(section: Section) -> list[str]:
    """What this machine lacks to run a section's examples."""
    wanted: set[str] = set()
    for example in section.examples:
        wanted.update(_TOOLS.get(example.language, ()))
        if example.language == "bash":
            wanted.update(_COMMANDS.findall(example.code))
    absent = sorted(tool for tool in wanted if locate(tool) is None)
    if "node" in wanted and "node" not in absent and _node_major() < _NODE_MAJOR:
        absent.append(f"node {_NODE_MAJOR} or newer")
    return absent


class Runner:
    """Runs sections of one page on one device."""

    def __init__(self, device: PageDevice) -> None:
        self._device = device
        self._printed = ""
        self._run: dict[str, Callable[[Example], None]] = {
            "bash": lambda example: self._command(example, ["bash", "-euo", "pipefail", "-c", self._here(example)]),
            "python": lambda example: self._file(example, "ask.py", sys.executable),
            "js": lambda example: self._file(example, "ask.mjs", "node"),
            "c": self._keep,
            "html": self._browse,
            "toml": lambda example: self._device.start(example.code, self._printed),
            "json": self._compare_json,
            "text": self._compare_text,
        }

    def run(self, section: Section) -> None:
        """Run a section's examples; each must succeed, and print what the page shows after it."""
        self._device.go_home()
        self._printed = ""
        for index, example in enumerate(section.examples):
            if example.language not in NOT_RUN:
                self._run[example.language](example)
            shown = section.examples[index + 1] if index + 1 < len(section.examples) else None
            if example.language not in SHOWN and not (shown is not None and '"error"' in shown.code):
                assert '{"error"' not in self._printed, f"line {example.line}: {self._printed}"

    def _here(self, example: Example) -> str:
        return self._device.here(example.code)

    def _write(self, name: str, example: Example) -> Path:
        path = self._device.folder / name
        path.write_text(self._here(example))
        return path

    def _keep(self, example: Example) -> None:
        """Have the source lie there for the commands that compile it."""
        self._write("ask.c", example)

    def _file(self, example: Example, name: str, program: str) -> None:
        self._command(example, [program, str(self._write(name, example))])

    def _command(self, example: Example, command: list[str]) -> None:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(
            command,
            cwd=self._device.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            errors="replace",  # tensors in binary
            timeout=_PATIENCE_S,
            check=False,
        )
        said = f"{done.stdout}{done.stderr}\n{self._device.agent.log}" if done.returncode else ""
        assert done.returncode == 0, f"line {example.line}:\n{example.code}\n{said}"
        self._printed = done.stdout

    def _browse(self, example: Example) -> None:
        """Open the page from the origin that its settings name, and wait for what it shows of the answer."""
        self._write("page.html", example)
        driver, chromium = locate("chromedriver"), locate("chromium")
        assert driver is not None
        assert chromium is not None
        with browser(driver, chromium, self._device.folder / "profile") as view:
            view.open(f"{self._device.origin}/page.html")
            self._printed = view.wait(
                "const shown = document.getElementById('digit').textContent; return shown !== 'asking...' && shown"
            )
            assert re.fullmatch(r"class \d", self._printed), f"line {example.line}: {self._printed}; {view.console()}"

    def _compare_json(self, example: Example) -> None:
        shown, found = json.loads(self._here(example)), answers(self._printed)[-1]
        differs = difference(shown, found)
        assert not differs, f"line {example.line}: {differs}"

    def _compare_text(self, example: Example) -> None:
        assert self._printed == example.code, f"line {example.line}: printed was {self._printed!r}"


def _node_major() -> int:
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", said)
    return int(found[1]) if found is not None else 0
