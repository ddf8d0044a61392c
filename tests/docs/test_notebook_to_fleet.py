"""Every command of docs/notebook-to-fleet.md, given as its reader does: one by one, with real programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples import Example, sections
from tests.docs.likeness import answers, difference

_PAGE = Path(__file__).parents[2] / "docs" / "notebook-to-fleet.md"
# A training takes some seconds, and many times that where others use the machine too.
_PATIENCE_S = 300.0
# On the page they have their usual ports; here others may use these.
_ANY_PORT = {
    "shoal server\n": "shoal server --port 0 --broker-port 0 --config ../server.toml\n",
    "shoal-agent run --state press-7\n": "shoal-agent run --state press-7 --port 0\n",
    "shoal trainer work ": "shoal trainer work --poll 0.5 ",
}
# Once a program runs on, this file says where it listens.
_ADDRESSES = {"shoal server": ("data/server.json", "url"), "shoal-agent run": ("press-7/agent.json", "api")}
_USUAL = {"url": "http://127.0.0.1:8080", "api": "http://127.0.0.1:8500"}
# Devices report every ten seconds, and the server looks every two, unless told otherwise.
_SERVER_SETTINGS = "report_interval_s = 1.0\ntick_s = 0.3\n"


class Reader:
    """Someone with a terminal, and others in which programs run on.

    Args:
        folder: Their own folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._programs = folder, folder.parent / "programs"
        self._running: list[subprocess.Popen[bytes]] = []
        self._addresses: dict[str, str] = {}
        self._state = folder.parent / "environment"
        self._programs.mkdir()
        (folder.parent / "server.toml").write_text(_SERVER_SETTINGS)
        path = os.pathsep.join((str(self._programs), str(Path(sys.executable).parent), os.environ["PATH"]))
        own = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        self._environment = own | {"PATH": path, "PYTHONPATH": str(_PAGE.parents[1]), "OMP_NUM_THREADS": "1"}
        for name, module in (("shoal", "fleet_server.cli"), ("shoal-agent", "edge_agent.cli")):
            program = self._programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            program.chmod(0o755)

    def type(self, code: str, *, where: str) -> str:
        """Give commands; what they print. The next ones find the environment that these leave."""
        remember = f"export -p > {self._state}"
        recall = f"[ ! -e {self._state} ] || . {self._state}"
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"{recall}\n{self._here(code)}\n{remember}"],
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{where}: still not done: {late.stdout!r} {late.stderr!r}\n{self._logs()}")
        assert done.returncode == 0, f"{where}:\n{code}\n{done.stdout}{done.stderr}\n{self._logs()}"
        return done.stdout

    def leave_running(self, code: str, *, where: str) -> None:
        """Start a program in a terminal of its own, and wait until it says where it listens."""
        with (self._folder.parent / f"program-{len(self._running)}.log").open("wb") as log:
            recall = f"[ ! -e {self._state} ] || . {self._state}"
            program = subprocess.Popen(
                ["bash", "-c", f"{recall}\nexec {self._here(code)}"],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append(program)
        for command, (file, member) in _ADDRESSES.items():
            if code.startswith(command):
                end = time.monotonic() + _PATIENCE_S
                while not (self._folder / file).exists():
                    assert program.poll() is None, f"{where}: it ended\n{self._logs()}"
                    assert time.monotonic() < end, f"{where}: it does not listen\n{self._logs()}"
                    time.sleep(0.1)
                self._addresses[_USUAL[member]] = json.loads((self._folder / file).read_text())[member]

    def leave(self) -> None:
        """End what runs on, the last first."""
        for program in reversed(self._running):
            program.terminate()
        for program in self._running:
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()

    def _here(self, code: str) -> str:
        for shown, real in {**_ANY_PORT, **self._addresses}.items():
            code = code.replace(shown, real)
        return code

    def _logs(self) -> str:
        logs = sorted(self._folder.parent.glob("program-*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "pumps"
    folder.mkdir()
    found = Reader(folder)
    yield found
    found.leave()


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
def test_a_reader_comes_from_the_notebook_to_the_fleet(reader: Reader) -> None:
    printed = ""
    for section in sections(_PAGE):
        for example in section.examples:
            printed = follow(reader, example, printed)


def follow(reader: Reader, example: Example, printed: str) -> str:
    """Do what an example says; what it printed, to be compared with what the page shows after it."""
    where = f"{_PAGE.name}, line {example.line}"
    match example.language:
        case "bash":
            return reader.type(example.code, where=where)
        case "python":
            return reader.type(f"python - <<'END'\n{example.code}END", where=where)
        case "sh":
            reader.leave_running(example.code, where=where)
        case "text":
            assert printed == example.code, f"{where}: printed was {printed!r}"
        case "json":
            differs = difference(json.loads(example.code), answers(printed)[-1])
            assert not differs, f"{where}: {differs}"
        case _:
            assert example.language in {"console", "toml"}, f"{where}: nothing runs {example.language}"
    return printed
