"""An agent's serving half over real sockets: repository, slots, monitor, outbox, local API."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from edge_agent.config import ApiSettings
from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.catalogue import Catalogue
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import Slots
from edge_agent.serving.local_api import LocalApi

M = TypeVar("M", bound=Message)

# Takes and labels every request that the tests send.
EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)
AGENT_VERSION = "1.2.3"


@dataclasses.dataclass
class Device:
    """A serving device and what it has put into its outbox.

    Args:
        models: The folder that its packages lie in, one folder each.
    """

    slots: Slots
    repository: Repository
    monitor: Monitor
    outbox: Outbox
    api: LocalApi
    models: Path

    @property
    def port(self) -> int:
        """Of its API on 127.0.0.1."""
        return int(urlsplit(self.api.addresses["api"]).port or 0)

    def ask(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lowercase) and body of the answer to one request on its own connection."""
        return _ask(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), method, path, body, headers)

    def ask_unix(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """As :meth:`ask`, over its unix socket."""
        connection = _UnixConnection(self.api.addresses["unix"].removeprefix("unix:"))
        return _ask(connection, method, path, body, headers)

    def ask_json(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and decoded JSON body."""
        status, answered, data = self.ask(method, path, body, headers)
        assert answered["content-type"] == "application/json"
        return status, json.loads(data)

    def sent(self, stream: Stream, kind: type[M]) -> list[M]:
        """The messages of a stream that wait in the outbox."""
        waiting = self.outbox.pending(stream, after=0, limit=1000)
        return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


@contextlib.contextmanager
def serving(
    folder: Path, settings: ApiSettings | None = None, *, threads: int = 2, start: bool = True
) -> Iterator[Device]:
    """A device that serves every package in ``folder/models``.

    Args:
        settings: A free port and bodies of 1 MiB where None.
        start: Whether it takes connections; else its addresses are known, and ``device.api.start()`` is the test's.
    """
    with contextlib.ExitStack() as stack:
        slots = Slots()
        stack.callback(slots.close)
        repository = Repository(slots, Catalogue(folder / "models"), policy="all")
        stack.callback(repository.close)
        repository.start()
        outbox = Outbox(folder / "outbox.db", fleet="fleet", device="device")
        stack.callback(outbox.close)
        monitor = Monitor(outbox, folder)
        stack.callback(monitor.close)
        api = LocalApi(
            settings or ApiSettings(port=0, max_body_mib=1),
            slots=slots,
            repository=repository,
            watcher=monitor,
            threads=threads,
            agent_version=AGENT_VERSION,
        )
        stack.callback(api.stop)
        if start:
            api.start()
        yield Device(slots, repository, monitor, outbox, api, folder / "models")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None,
    headers: dict[str, str] | None,
) -> tuple[int, dict[str, str], bytes]:
    try:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, body=data, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
