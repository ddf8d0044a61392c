"""What the input checks and the monitoring cost: the serving parts with and without them, side by side.

All variants run at once on the servers' core and are asked in turn, a fraction of a second each, many times: so the
machine's mood is the same for all. They are started anew several times: where the memory of a process happens to lie
makes it up to a tenth faster or slower for as long as it lives. Compared is the processor time per request with 16
connections, when the core has nothing else to do and its rate is the inverse of that.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.serving.framing import HttpFraming
from benchmarks.serving.load import Wire, connect_tcp, measure
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Way, oip_binary, program, read_oip_binary
from benchmarks.serving.processes import ServerProcess, free_port

_VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "no checks": ("no-checks",),
    "no monitoring": ("no-monitoring",),
    "neither": ("no-checks", "no-monitoring"),
}
_CONNECTIONS = 16
_WARM_UP_S = 0.5
# A turn counts that came so near to the fastest one; at least so many turns of a start do.
_QUIET, _FEWEST = 1.1, 4


def measure_overheads(model: Model, core: int, *, starts: int, turns: int, seconds: float) -> dict[str, float]:
    """``checks_percent`` and ``monitoring_percent`` of the throughput, and each variant's processor time per request.

    Args:
        starts: How often all are started; ``turns``: rounds of each variant then; ``seconds`` of one.
    """
    all_times = [_times(model, core, turns, seconds) for _ in range(starts)]
    found = {
        f"cpu_us, {name}": statistics.median(statistics.median(times[name]) for times in all_times)
        for name in _VARIANTS
    }
    for name, without in (("checks_percent", "no checks"), ("monitoring_percent", "no monitoring")):
        # The median of the ratios within one turn, which neighbours in time make: rate is the inverse of time.
        shares = [
            statistics.median(times[without][turn] / times["all"][turn] for turn in _quiet(times["neither"]))
            for times in all_times
        ]
        found[name] = 100 * (1 - statistics.median(shares))
    return found


def _quiet(times: list[float]) -> list[int]:
    """The turns in which a server that takes no part in the comparison was about as fast as it can be."""
    order = sorted(range(len(times)), key=times.__getitem__)
    quiet = [turn for turn in order if times[turn] <= _QUIET * times[order[0]]]
    return quiet if len(quiet) >= _FEWEST else order[:_FEWEST]


def _times(model: Model, core: int, turns: int, seconds: float) -> dict[str, list[float]]:
    """Processor time per request in us, by variant and turn."""
    times: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        servers = {name: _start(model, core, Path(folder) / str(index), without)
                   for index, (name, without) in enumerate(_VARIANTS.items())}  # fmt: skip
        try:
            for process, way in servers.values():
                process.wait_for(lambda way=way: way.is_right(model))  # type: ignore[misc]
                measure(way.wire, _CONNECTIONS, _WARM_UP_S)
            for turn in range(turns):
                # To and fro, so that none is always the one after the same other.
                for name in [*servers] if turn % 2 else [*reversed(servers)]:
                    process, way = servers[name]
                    before = process.cpu_s()
                    figures = measure(way.wire, _CONNECTIONS, seconds)
                    times[name].append(figures.each_us(process.cpu_s() - before))
        finally:
            for process, _ in servers.values():
                process.stop()
    return times


def _start(model: Model, core: int, folder: Path, without: tuple[str, ...]) -> tuple[ServerProcess, Way]:
    folder.mkdir()
    port = free_port()
    command = [
        sys.executable, program("shoal_parts.py"), str(model.folder), str(folder / "state"), str(port),
        str(folder / "http.sock"), str(folder / "frames.sock"), *without,
    ]  # fmt: skip
    process = ServerProcess(command, core=core, log=folder / "log.txt")
    request = oip_binary(model, f"/v2/models/{model.name}/infer")
    return process, Way(Wire("http binary", connect_tcp(port), HttpFraming(), lambda _: request), read_oip_binary)
