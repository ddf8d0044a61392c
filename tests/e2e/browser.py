"""A real headless Chromium, driven over the WebDriver protocol (W3C) with nothing but HTTP."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_STARTS = 5
PATIENCE_S = 100.0


class Browser:
    """One browser session.

    Args:
        session: Base address of the session at the driver.
    """

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, session

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._post("url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a function body in the page; gives what it returns."""
        return self._post("execute/sync", {"script": script, "args": []})

    def wait(self, script: str) -> Any:
        """Wait until a function body returns something true; gives that.

        Raises:
            AssertionError: It did not within ``PATIENCE_S``.
        """
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"not true within {PATIENCE_S:.0f} s: {script}\n{self.console()}")

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Take on the size and the colour scheme of a viewer's screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._cdp("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def in_zone(self, zone: str) -> None:
        """Take on a viewer's time zone."""
        self._cdp("Emulation.setTimezoneOverride", {"timezoneId": zone})

    def console(self, level: str = "SEVERE") -> list[str]:
        """What the page's scripts, the security policy and the network have complained of since the last call."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"}) if entry["level"] == level]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save what is seen as PNG; ``whole``: the page to its end."""
        found = self._cdp("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(found["data"]))

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, what: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(f"{self._session}/{what}", json=body)
        if answer.is_error:
            raise AssertionError(f"{what}: {answer.text[:2000]}")
        return answer.json()["value"]


@contextlib.contextmanager
def browser(driver: Path, chromium: Path, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile of its own, ended with the block."""
    profile.mkdir(parents=True)
    environment = os.environ | {"HOME": str(profile)}
    with (
        _driver([str(driver), "--port=0"], environment) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http,
    ):
        options = {"binary": str(chromium), "args": [*_FLAGS, f"--user-data-dir={profile / 'data'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
        assert not answer.is_error, answer.text
        session = f"/session/{answer.json()['value']['sessionId']}"
        try:
            yield Browser(http, session)
        finally:
            http.delete(session)


@contextlib.contextmanager
def _driver(command: list[str], environment: Mapping[str, str]) -> Iterator[int]:
    """A running driver's port.

    It takes a free port for IPv6 and then wants the same one for IPv4, where another program may have it: then it ends,
    and is started again.
    """
    said = ""
    for _ in range(_STARTS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                port, said = _port(process)
                if port is not None:
                    yield port
                    return
            finally:
                process.terminate()
    raise AssertionError(f"the driver did not start, {_STARTS} times; it said: {said}")


def _port(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    """Read from what the driver says, that it was started successfully on port 43210; None where it ended instead."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "started successfully on port" in line:
            return int(line.rstrip().rstrip(".").rpartition(" ")[2]), ""
    return None, "".join(lines)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It did not within ``PATIENCE_S``.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
