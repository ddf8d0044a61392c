"""One row of the table, and the measuring of all rows of one server with one model."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving.load import Figures, Wire, measure
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Peer, Place
from benchmarks.serving.processes import CoreClock, ServerProcess
from benchmarks.serving.raw import RawRuns

# Less than this share of a core taken by others is noise.
QUIET_PERCENT = 5.0
# On a busy machine so many times the rounds are tried.
_MORE_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What one server does with one model over one transport.

    Args:
        added_p50_us: Its p50 above that of the raw run measured beside it; with several connections it holds the wait
            for each other, too.
        rss_mb: Memory of all its processes after the load.
        start_s: From the start of its process to the first right answer.
        cpu_us: Processor time of its processes per request: steadier than the rest on a busy machine.
        others_percent: Share of the servers' core that other programs took meanwhile: where it is not about 0, the
            machine was busy, and the figures are worse than the server is.
        raw_per_s: The highest rate of the raw run right before and after its own rounds, as its own is the highest of
            them: a busy second would flatter it, and who is tried more often comes further by luck alone.
        beside_percent: Its rate as a share of the raw run's right before and after: the median of all rounds.
    """

    target: str
    model: str
    transport: str
    connections: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    added_p50_us: float
    rss_mb: float
    start_s: float
    cpu_us: float
    others_percent: float
    raw_per_s: float
    beside_percent: float


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long to measure.

    Args:
        seconds: Of one round, and of the raw run between two; ``warm_up_s`` before the first.
        rounds: Of which the best counts: what else the machine does only ever makes a figure worse. All transports
            take turns, for a bad moment must not hit all rounds of one.
    """

    seconds: float = 0.5
    warm_up_s: float = 0.5
    rounds: int = 6
    connections: tuple[int, ...] = (1, 16)

    @classmethod
    def quick(cls) -> Pace:
        """Enough to see that all works."""
        return cls(seconds=0.3, warm_up_s=0.3, rounds=2)


def raw_row(model: Model, raw: RawRuns, pace: Pace) -> Row:
    """The limit as a row of its own."""
    best = max((raw.measure(pace.seconds) for _ in range(pace.rounds)), key=lambda found: found["requests_per_s"])
    rate = best["requests_per_s"]
    return Row(
        "raw run",
        model.name,
        "in-process",
        1,
        rate,
        best["p50_us"],
        best["p99_us"],
        0.0,
        0.0,
        0.0,
        1e6 / rate,
        0.0,
        rate,
        100.0,
    )


def server_rows(peer: Peer, model: Model, raw: RawRuns, *, python: str, core: int, pace: Pace) -> Iterator[Row]:
    """Start the server with this model, and measure each of its transports with each number of connections.

    Raises:
        ServerEnded, OSError, ValueError: It does not answer, or not as the model does.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        running = peer.serve(model, Place(python=python, folder=Path(folder), core=core))
        process = running.process
        try:
            first = running.ways[0]
            process.wait_for(lambda: first.is_right(model))
            for way in running.ways:
                if not way.is_right(model):
                    raise ValueError(f"{peer.target}, {way.wire.name}: a wrong answer")
                measure(way.wire, max(pace.connections), pace.warm_up_s)
            cells = [_Cell(way.wire, connections) for way in running.ways for connections in pace.connections]
            _take_turns(cells, process, CoreClock(core), raw, pace)
            rss_mb = process.rss_mb()
        finally:
            process.stop()
            running.close()
    for cell in cells:
        best = cell.best
        figures = best.figures
        yield Row(
            peer.target, model.name, cell.wire.name, cell.connections, figures.requests_per_s, figures.p50_us,
            figures.p99_us, figures.p50_us - best.raw_p50_us, rss_mb, process.start_s, best.cpu_us, best.others_percent,
            cell.raw_per_s, cell.beside_percent,
        )  # fmt: skip


class _Round(NamedTuple):
    figures: Figures
    cpu_us: float
    others_percent: float
    raw_per_s: tuple[float, float]  # before and after
    raw_p50_us: float


@dataclasses.dataclass
class _Cell:
    """One transport with one number of connections."""

    wire: Wire
    connections: int
    rounds: list[_Round] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> _Round:
        """The round with the highest rate."""
        return max(self.rounds, key=lambda each: each.figures.requests_per_s)

    @property
    def was_quiet(self) -> bool:
        """Whether there was a round in which the machine did nothing else."""
        return min(each.others_percent for each in self.rounds) <= QUIET_PERCENT

    @property
    def raw_per_s(self) -> float:
        """See :class:`Row`."""
        return max(rate for each in self.rounds for rate in each.raw_per_s)

    @property
    def beside_percent(self) -> float:
        """See :class:`Row`."""
        rates = [each.figures.requests_per_s / statistics.mean(each.raw_per_s) for each in self.rounds]
        return 100 * statistics.median(rates)


def _take_turns(cells: Sequence[_Cell], process: ServerProcess, clock: CoreClock, raw: RawRuns, pace: Pace) -> None:
    """Measure all cells round by round, each between two raw runs; on a busy machine more rounds, hoping for quiet."""
    before = raw.measure(pace.seconds)
    for number in range(pace.rounds * _MORE_ROUNDS):
        for cell in cells:
            if number >= pace.rounds and cell.was_quiet:
                continue
            used, busy = process.cpu_s(), clock.busy_s()
            figures = measure(cell.wire, cell.connections, pace.seconds)
            used, busy = process.cpu_s() - used, clock.busy_s() - busy
            after = raw.measure(pace.seconds)
            others = max(0.0, 100 * (busy - used) / figures.seconds)
            raw_per_s = before["requests_per_s"], after["requests_per_s"]
            raw_p50_us = (before["p50_us"] + after["p50_us"]) / 2
            cell.rounds.append(_Round(figures, figures.each_us(used), others, raw_per_s, raw_p50_us))
            before = after
