"""An agent's serving half over real sockets: slots, monitor, outbox, HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.slots import Slots, load
from edge_agent.serving.app import InferenceApp
from edge_agent.serving.http_server import HttpServer
from tests.fakes.packages import make_package
from tests.fakes.text_package import make_text_package

M = TypeVar("M", bound=Message)

# Takes and labels every request that the tests send.
EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)


@dataclasses.dataclass
class Device:
    """A serving device and what it has put into its outbox."""

    slots: Slots
    monitor: Monitor
    outbox: Outbox
    server: HttpServer
    folder: Path

    def ask(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lowercase) and body of the answer to one request on its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, body=data, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def ask_json(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and decoded JSON body."""
        status, headers, data = self.ask(method, path, body)
        assert headers["content-type"] == "application/json"
        return status, json.loads(data)

    def sent(self, stream: Stream, kind: type[M]) -> list[M]:
        """The messages of a stream that wait in the outbox."""
        waiting = self.outbox.pending(stream, after=0, limit=1000)
        return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Device]:
    """A device that serves the models "digits" (which fails on pixels above 0.95) and "echo"."""
    slots = Slots()
    slots.install(load(make_package(folder / "digits", sampling=EVERYTHING, fails_above=0.95)))
    slots.install(load(make_text_package(folder / "echo")))
    outbox = Outbox(folder / "outbox.db", fleet="fleet", device="device")
    monitor = Monitor(outbox, folder)
    app = InferenceApp(slots, monitor, monitor, agent_version="1.2.3", body_limit_bytes=1_000_000)
    server = HttpServer(app)
    server.start()
    try:
        yield Device(slots, monitor, outbox, server, folder)
    finally:
        server.stop()
        slots.close()
        monitor.close()
        outbox.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device of the test's own."""
    with serving(tmp_path) as device:
        yield device


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One for all tests of a module that neither change its models nor look at its counts."""
    with serving(tmp_path_factory.mktemp("shared")) as device:
        yield device
