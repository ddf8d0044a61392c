"""How much of a model's own rate is left when it is served: Shoal and the raw run in turn, many times.

Both share the servers' core and are measured right after each other, a fraction of a second each, so that the machine's
mood is the same for both; and from several starts, as a process keeps the luck of where its memory happens to lie. When
other machines on the same processor fill its caches, a server loses more than the raw run, which fits into them by
itself: what counts are the turns in which the raw run was about as fast as it can be.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving.load import measure
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place
from benchmarks.serving.peers.shoal import Shoal
from benchmarks.serving.raw import RawRuns

_CONNECTIONS = 16
_WARM_UP_S = 0.5
# A turn counts whose raw runs came so near to the fastest one; at least so many turns do.
_QUIET, _FEWEST = 0.95, 5


def measure_shares(model: Model, core: int, *, starts: int, turns: int, seconds: float) -> dict[str, float]:
    """Rate over TCP and over the unix socket with 16 connections, in percent of the raw run's: medians of quiet turns.

    Args:
        starts: Of the server; ``turns``: rounds of each transport then; ``seconds`` of one.
    Returns:
        By ``MODEL_TRANSPORT_percent``.
    """
    found: dict[str, list[_Turn]] = {}
    with RawRuns(model, core) as raw:
        for _ in range(starts):
            for name, turn in _turns(model, core, raw, turns, seconds):
                found.setdefault(name, []).append(turn)
    fastest = max(turn.raw_per_s for all_turns in found.values() for turn in all_turns)
    return {
        f"{model.name}_{name}_percent": 100 * statistics.median(_quiet(all_turns, fastest))
        for name, all_turns in found.items()
    }


class _Turn(NamedTuple):
    share: float
    raw_per_s: float  # the slower one of those before and after


def _quiet(turns: list[_Turn], fastest: float) -> list[float]:
    """Shares of the turns in which the machine was quiet; of the quietest ones where there were few."""
    by_raw = sorted(turns, key=lambda turn: -turn.raw_per_s)
    quiet = [turn.share for turn in by_raw if turn.raw_per_s >= _QUIET * fastest]
    return quiet if len(quiet) >= _FEWEST else [turn.share for turn in by_raw[:_FEWEST]]


def _turns(model: Model, core: int, raw: RawRuns, turns: int, seconds: float) -> Iterator[tuple[str, _Turn]]:
    """Those of one start, by transport."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        running = Shoal().serve(model, Place(python=sys.executable, folder=Path(folder), core=core))
        wires = {
            name: way.wire for name in ("http", "unix") for way in running.ways if way.wire.name == f"{name} binary"
        }
        try:
            running.process.wait_for(lambda: running.ways[0].is_right(model))
            for wire in wires.values():
                measure(wire, _CONNECTIONS, _WARM_UP_S)
            before = raw.measure(seconds)["requests_per_s"]
            for _ in range(turns):
                for name, wire in wires.items():
                    rate = measure(wire, _CONNECTIONS, seconds).requests_per_s
                    after = raw.measure(seconds)["requests_per_s"]
                    yield name, _Turn(2 * rate / (before + after), min(before, after))
                    before = after
        finally:
            running.process.stop()
            running.close()
