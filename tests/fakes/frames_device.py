"""A device that serves models over frames alone: slots, monitor, outbox and a real unix socket."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from edge_agent.config import AppSettings
from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature
from edge_agent.contract.topics import Stream
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import Slots, load
from edge_agent.serving.access import Access
from edge_agent.serving.admission import Admission
from edge_agent.serving.connections import Connections
from edge_agent.serving.frames.handler import FrameHandler
from edge_agent.serving.frames.protocol import FrameLimits, FrameProtocol
from edge_agent.serving.inference import Inference
from edge_agent.serving.listen import address_of, listen_unix
from edge_agent.serving.server import Listener, Server
from edge_agent.serving.shared_memory import Regions
from tests.fakes.packages import make_package
from tests.fakes.text_package import make_text_package

M = TypeVar("M", bound=Message)

# Takes and labels every request that the tests send.
EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)


class GatedBackend:
    """A backend whose runs wait until the gate is open."""

    platform = "gated"

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self.signature: Signature = backend.signature
        self.gate = threading.Event()
        self.started = 0

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.started += 1
        if not self.gate.wait(30):
            raise RuntimeError("the gate stayed closed")
        return self._backend.infer(inputs)

    def cancel(self) -> None:
        self.gate.set()

    def close(self) -> None:
        self.gate.set()
        self._backend.close()


class SleepyModels:
    """Wakes models by loading their package again."""

    def __init__(self, slots: Slots, folder: Path) -> None:
        self._slots, self._folder = slots, folder

    def wake(self, model: str, version: str | None = None) -> None:  # noqa: ARG002 - the protocol has it
        self._slots.install(load(Package.open(self._folder / model, verify=False)))


@dataclasses.dataclass
class FramesDevice:
    """A serving device and what it has put into its outbox.

    Args:
        path: Of the socket.
        gated: The backend of the model "slow".
    """

    path: str
    slots: Slots
    monitor: Monitor
    outbox: Outbox
    regions: Regions
    connections: Connections
    admission: Admission
    access: Access
    gated: GatedBackend
    server: Server

    def sent(self, stream: Stream, kind: type[M]) -> list[M]:
        """The messages of a stream that wait in the outbox."""
        waiting = self.outbox.pending(stream, after=0, limit=1000)
        return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


@contextlib.contextmanager
def serving_frames(
    folder: Path,
    *,
    limits: FrameLimits | None = None,
    max_connections: int = 32,
    max_pending: int = 64,
    apps: Sequence[AppSettings] = (),
    sweep_s: float = 0.05,
    name: str = "frames.sock",
) -> Iterator[FramesDevice]:
    """Serves "digits" (inline; fails on pixels above 0.95), "slow" (in threads, behind a gate) and "echo" (text)."""
    limits = limits or FrameLimits(frame_bytes=1_000_000)
    slots = Slots()
    for made in ("digits", "slow"):
        if not (folder / made).exists():
            make_package(folder / made, name=made, sampling=EVERYTHING, fails_above=0.95)
    if not (folder / "echo").exists():
        make_text_package(folder / "echo")
    slots.install(load(Package.open(folder / "digits", verify=False)))
    slots.install(load(Package.open(folder / "echo", verify=False)))
    slow = load(Package.open(folder / "slow", verify=False))
    gated = GatedBackend(slow.backend)
    slow.backend, slow.inline = gated, False
    slots.install(slow)
    outbox = Outbox(folder / "outbox.db", fleet="fleet", device="device")
    monitor = Monitor(outbox, folder)
    inference = Inference(monitor, threads=2)
    regions, access = Regions(), Access(apps)
    connections = Connections(max_connections, sweep_s=sweep_s)
    admission = Admission(max_requests=max_pending, max_bytes=2 * limits.frame_bytes)
    handler = FrameHandler(
        slots=slots,
        repository=SleepyModels(slots, folder),
        inference=inference,
        feedback=monitor,
        regions=regions,
        access=access,
        admission=admission,
        agent_version="1.2.3",
        max_rows=1024,
    )
    path = str(folder / name)
    listener = listen_unix(path)
    server = Server(
        [Listener(listener, lambda: FrameProtocol(handler, connections, limits), address_of(listener), path)],
        connections,
        grace_s=5.0,
    )
    server.start()
    try:
        yield FramesDevice(path, slots, monitor, outbox, regions, connections, admission, access, gated, server)
    finally:
        gated.gate.set()
        server.stop()
        inference.close()
        slots.close()
        monitor.close()
        outbox.close()
        regions.close()
