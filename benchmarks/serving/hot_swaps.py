"""Two versions of a model take each other's place again and again, while applications go on asking.

The agent serves a folder of packages. The second version's package is moved into that folder and out of it, and each
time the model is loaded again over the protocol's repository extension, as an operator would. Every answer is compared
with what either version says; anything else is a failed request.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, ask_once, connect_tcp, receive
from benchmarks.serving.models import Model, make_model
from benchmarks.serving.peer import Way, oip_binary, read_oip_binary
from benchmarks.serving.processes import ServerProcess, free_port

_APPLICATIONS = 4
_SETTLE_S = 0.5
# Before the first swap, so that the agent's bounded memory of recent requests is full, and no growth of the swaps.
_REQUESTS_BEFORE = 15_000
_BEFORE_S = 60.0
# Two seconds after its start the agent lets go of the code that it has needed so far, 20 of 30 MB; what it goes on to
# need is back after some requests and swaps more. Measured before, what comes back would be taken for growth.
_SETTLED_AFTER_S = 5.0


@dataclasses.dataclass
class Swaps:
    """What happened.

    Args:
        early_mb, late_mb: Memory after the tenth and after the last swap.
        errors: The first few failures, as text.
    """

    swaps: int = 0
    requests: int = 0
    failed: int = 0
    early_mb: float = 0.0
    late_mb: float = 0.0
    seconds: float = 0.0
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def growth_percent(self) -> float:
        """Memory that the swaps after the tenth have added."""
        return 100 * (self.late_mb / self.early_mb - 1)


def measure_hot_swaps(core: int, *, swaps: int) -> Swaps:
    """Swap so many times under load."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models, spare = folder / "models", folder / "spare"
        models.mkdir()
        spare.mkdir()
        first = make_model(models / "one", "tiny", version="1")
        second = make_model(spare / "two", "tiny", version="2", seed=1)
        port = free_port()
        config = folder / "agent.toml"
        config.write_text(f'state = "{folder / "state"}"\n[api]\nport = {port}\n[runtime]\nmodels = "{models}"\n')
        command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(config), "--log-level", "warning"]
        process = ServerProcess(command, core=core, log=folder / "log.txt")
        request = oip_binary(first, "/v2/models/tiny/infer")
        way = Way(Wire("http binary", connect_tcp(port), HttpFraming(), lambda _: request), read_oip_binary)
        try:
            process.wait_for(lambda: way.is_right(first))
            return _swap(process, way, (first, second), places=(models / "two", spare / "two"), port=port, swaps=swaps)
        finally:
            process.stop()


def _swap(
    process: ServerProcess,
    way: Way,
    versions: tuple[Model, Model],
    *,
    places: tuple[Path, Path],
    port: int,
    swaps: int,
) -> Swaps:
    told, over = Swaps(), threading.Event()
    applications = [
        threading.Thread(target=_ask, args=(way, versions, told, over), daemon=True) for _ in range(_APPLICATIONS)
    ]
    load = http_request("/v2/repository/models/tiny/load", b"{}")
    loader = Wire("load", connect_tcp(port), HttpFraming(), lambda _: load)
    inside, outside = places
    begin = time.perf_counter()
    for application in applications:
        application.start()
    try:
        time.sleep(_SETTLED_AFTER_S)
        until = time.monotonic() + _BEFORE_S
        while told.requests < _REQUESTS_BEFORE and time.monotonic() < until:
            time.sleep(0.05)
        for number in range(1, swaps + 1):
            source, target = (outside, inside) if number % 2 else (inside, outside)
            source.rename(target)
            ask_once(loader)
            if not way.is_right(versions[number % 2]):
                raise ValueError(f"swap {number}: the other version does not serve")
            told.swaps = number
            if number == 10:
                told.early_mb = _memory(process)
    finally:
        over.set()
        for application in applications:
            application.join(30)
    told.late_mb = _memory(process)
    told.seconds = time.perf_counter() - begin
    return told


def _memory(process: ServerProcess) -> float:
    time.sleep(_SETTLE_S)
    return process.rss_mb()


def _ask(way: Way, versions: tuple[Model, Model], told: Swaps, over: threading.Event) -> None:
    """One application: asks again and again on one connection, and compares every answer."""
    wire = way.wire
    request, connection = wire.request(0), wire.connect()
    while not over.is_set():
        try:
            connection.sendall(request)
            found = way.read(wire.framing.body(receive(connection, wire.framing)))
            fault = "" if any(model.is_right(found) for model in versions) else f"an answer of neither version: {found}"
        except (OSError, ValueError) as error:
            fault = str(error)
            connection.close()
            connection = wire.connect()
        told.requests += 1
        if fault:
            told.failed += 1
            told.errors = [*told.errors[:4], fault[:200]]
    connection.close()
