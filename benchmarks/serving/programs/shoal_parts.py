"""Shoal's serving parts put together by hand, so that single ones can be left out: what does each cost?

The agent has no setting for this, and needs none. ``python shoal_parts.py PACKAGE STATE PORT UNIX FRAMES [no-checks]
[no-monitoring]``; without the last two it is put together as the agent is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from edge_agent.contract.checking import Checked, InputCheck
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import Signature
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.package import Package
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import Slots, load
from edge_agent.serving.access import Access
from edge_agent.serving.admission import Admission
from edge_agent.serving.connections import Connections
from edge_agent.serving.frames.handler import FrameHandler
from edge_agent.serving.frames.protocol import FrameLimits, FrameProtocol
from edge_agent.serving.http.limits import HttpLimits
from edge_agent.serving.http.protocol import HttpProtocol
from edge_agent.serving.inference import Inference, Observer
from edge_agent.serving.listen import address_of, listen_tcp, listen_unix
from edge_agent.serving.peer import Transport
from edge_agent.serving.rest.router import Router
from edge_agent.serving.server import Listener, Server
from edge_agent.serving.shared_memory import Regions

_REPORT_S = 10.0
_BODY_BYTES = 16 << 20


class ShapesOnly:
    """What any server must look at before it runs a model: names, datatypes and shapes."""

    def __init__(self, signature: Signature) -> None:
        self._specs = [(spec.name, spec.datatype.numpy, spec.shape) for spec in signature.inputs]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Checked:
        for name, dtype, shape in self._specs:
            array = inputs[name]
            if array.dtype != dtype or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
                raise SignatureMismatch(name, rule="shape", detail=f"got {array.dtype} {array.shape}")
        return Checked(dict(inputs))


class WorkingTime:
    """Seconds in which this process worked, to 20 ms.

    What monitoring does a second at most it does in a second of work: four servers take turns on one core, and in the
    pauses of a clock on the wall each would save up for what a server that is always busy never does. Asking the kernel
    for each run takes several times as long as the agent's own clock does.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        threading.Thread(target=self._follow, daemon=True).start()

    def now(self) -> float:
        """The time."""
        return self._now_s

    def _follow(self) -> None:
        while True:
            self._now_s = time.process_time()
            time.sleep(0.02)


class Nobody:
    """An observer that does not look."""

    def observe(self, *_: object, **__: object) -> bool:
        return False

    def observe_together(self, *_: object, **__: object) -> tuple[int, ...]:
        return ()

    def refused(self, *_: object) -> None:
        pass

    def failed(self, *_: object) -> None:
        pass


def main() -> None:
    package, state, port, unix, frames, *without = sys.argv[1:]
    folder = Path(state)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load(Package.open(Path(package), verify=False))
    if "no-checks" in without:
        loaded.check = cast(InputCheck, ShapesOnly(loaded.signature))
    outbox = Outbox(folder / "outbox.db", fleet="none", device="none")
    monitor = Monitor(outbox, folder, steady=WorkingTime().now)
    observer: Observer = Nobody() if "no-monitoring" in without else monitor
    threading.Thread(target=_report, args=(monitor,), daemon=True).start()
    slots = Slots()
    slots.install(loaded)
    inference = Inference(observer, threads=1)
    server = _server(slots, monitor, inference, addresses=(int(port), unix, frames))
    server.run()
    inference.close()
    slots.close()
    monitor.close()
    outbox.close()


def _server(slots: Slots, monitor: Monitor, inference: Inference, *, addresses: tuple[int, str, str]) -> Server:
    port, unix, frames = addresses
    access, regions, connections = Access(()), Regions(), Connections(256)
    admission = Admission(max_requests=64, max_bytes=2 * _BODY_BYTES)
    # Nothing sleeps here, so that nobody is ever asked to wake it.
    repository = cast(Repository, None)
    router = Router(
        slots, repository, inference, monitor, regions, access=access, admission=admission, agent_version="0",
        max_rows=1024, body_limit_bytes=_BODY_BYTES,
    )  # fmt: skip
    handler = FrameHandler(
        slots=slots, repository=repository, inference=inference, feedback=monitor, regions=regions, access=access,
        admission=admission, agent_version="0", max_rows=1024,
    )  # fmt: skip
    limits = HttpLimits()
    tcp, local, framed = listen_tcp("127.0.0.1", port), listen_unix(unix), listen_unix(frames)
    return Server(
        [
            Listener(tcp, lambda: HttpProtocol(router, connections, limits, Transport.TCP), address_of(tcp)),
            Listener(local, lambda: HttpProtocol(router, connections, limits, Transport.UNIX), unix, unix),
            Listener(framed, lambda: FrameProtocol(handler, connections, FrameLimits()), frames, frames),
        ],
        connections,
    )


def _report(monitor: Monitor) -> None:
    pause = threading.Event()
    while not pause.wait(_REPORT_S):
        monitor.flush()


if __name__ == "__main__":
    main()
