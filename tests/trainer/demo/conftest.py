"""An agent's serving half over a real socket, with the digits model, so that cameras have somebody to ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.manifest import FileEntry, Manifest
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from edge_agent.runtime.slots import Slots, load
from edge_agent.serving.app import InferenceApp
from edge_agent.serving.http_server import HttpServer

M = TypeVar("M", bound=Message)

# Takes and asks a label for every request.
EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)


@dataclasses.dataclass
class Device:
    """A serving device and what it has put into its outbox."""

    package: Package
    monitor: Monitor
    outbox: Outbox
    server: HttpServer

    def sent(self, stream: Stream, kind: type[M]) -> list[M]:
        """What waits in the outbox, all that was counted included."""
        self.monitor.flush()
        waiting = self.outbox.pending(stream, after=0, limit=1000)
        return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


@pytest.fixture
def device(champion: Package, tmp_path: Path) -> Iterator[Device]:
    def asking_for_labels(entries: dict[str, FileEntry]) -> Manifest:
        return msgspec.structs.replace(champion.manifest, files=entries, sampling=EVERYTHING)

    files = {name: champion.path(name) for name in champion.manifest.files}
    package = write_package(tmp_path / "package", files=dict(files), manifest=asking_for_labels)
    slots = Slots()
    slots.install(load(package))
    outbox = Outbox(tmp_path / "outbox.db", fleet="fleet", device="device")
    monitor = Monitor(outbox, tmp_path)
    app = InferenceApp(slots, monitor, monitor, agent_version="1", body_limit_bytes=1_000_000)
    server = HttpServer(app)
    server.start()
    try:
        yield Device(package, monitor, outbox, server)
    finally:
        server.stop()
        slots.close()
        monitor.close()
        outbox.close()
