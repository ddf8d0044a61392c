"""The device that a page's examples talk to: real agents, one for each settings example, in one folder."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs.digits_package import make_digits_package
from tests.e2e.running_agent import Agent, agent

_PLACES = ("unix_socket", "frames_socket", "grpc_socket")


class PageDevice:
    """What stands for the addresses, paths and names that a page's examples use.

    Args:
        folder: The examples' working directory; short, for it holds unix sockets.
        origin: Of the web pages that are served from ``folder``.
    """

    def __init__(self, folder: Path, origin: str, agents: contextlib.ExitStack) -> None:
        self.folder, self.origin = folder, origin
        self._agents = agents
        self._models = folder / "packages"
        make_digits_package(self._models / "digits")
        # Where the page's reader has trained it.
        (folder / "build").mkdir()
        (folder / "build" / "digits-1").symlink_to(self._models / "digits")
        self._agent: Agent | None = None
        self._home: Agent | None = None
        self._started = 0

    def start(self, settings: str, printed: str) -> None:
        """Start an agent with a page's settings, for the examples until :meth:`go_home`.

        Args:
            printed: What the example before it has printed: a digest to put into the settings, perhaps.
        """
        self._started += 1
        place = self.folder / str(self._started)
        place.mkdir()
        one = self._agents.enter_context(agent(place / "state"))
        one.settings.write_text(self._settings(settings, printed, place))
        one.start()
        self._agent = one
        self._home = self._home or one

    def go_home(self) -> None:
        """Stop the agent of a section's own settings, and go back to that of the page's first ones."""
        if self._agent is not None and self._agent is not self._home:
            self._agent.stop()
        self._agent = self._home

    @property
    def agent(self) -> Agent:
        """The one that examples reach now."""
        assert self._agent is not None, "the page shows no settings before its first example"
        return self._agent

    def here(self, code: str) -> str:
        """An example for this device."""
        listening = json.loads((self.agent.state / "agent.json").read_text())
        standing_for = {
            "127.0.0.1:8500": self.agent.address,
            "127.0.0.1:8501": listening.get("grpc", ""),
            '"127.0.0.1", 8500': '"{}", {}'.format(*self.agent.address.split(":")),
            "/run/shoal": str(self.agent.state.parent),
            "/var/lib/shoal": str(self.agent.state),
            "/camera": f"/camera-{os.getpid()}",
        }
        for shown, real in standing_for.items():
            code = code.replace(shown, real)
        return code

    def _settings(self, shown: str, printed: str, place: Path) -> str:
        """The page's settings with this device's places, and what else an agent of a test needs."""
        text = shown.replace("/run/shoal", str(place)).replace("/srv/models", str(self._models))
        text = text.replace("http://localhost:3000", self.origin).replace("1001", str(os.getuid()))
        text = re.sub(r"grpc_port = \d+", "grpc_port = 0", text).replace('"0.0.0.0"', '"127.0.0.1"')
        digest = re.search(r"\b[0-9a-f]{64}\b", printed)
        text = text.replace("THE 64 DIGITS", digest[0] if digest is not None else "")
        told: dict[str, Any] = tomllib.loads(text)
        for table, key, value in (("api", "port", "0"), ("runtime", "models", f'"{self._models}"')):
            if key not in told.get(table, {}):
                head = f"[{table}]\n"
                text = text if head in text else f"{head}\n{text}"
                text = text.replace(head, f"{head}{key} = {value}\n")
        return f'state = "{place / "state"}"\n{text}'


@contextlib.contextmanager
def page_device() -> Iterator[PageDevice]:
    """A device without an agent yet; its folder, its web server and its agents end with the block."""
    with contextlib.ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="page")))
        files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietFiles, directory=str(folder)))
        ending.callback(files.server_close)
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        ending.callback(thread.join)
        ending.callback(files.shutdown)
        yield PageDevice(folder, f"http://localhost:{files.server_port}", ending)


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""
