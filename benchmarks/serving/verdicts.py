"""Shoal's goals, and what a run says about each. A missed goal is said, and is no error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from benchmarks.serving.rows import Row

SHOAL = "shoal"
_PYTHON_PEERS = ("mlserver", "litserve", "bentoml", "fastapi")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One goal.

    Args:
        sign: ``<=`` or ``>=``.
        measured: None where this run did not measure it.
    """

    what: str
    sign: str
    goal: float
    measured: float | None

    @property
    def outcome(self) -> str:
        """met, missed or not measured."""
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.goal if self.sign == "<=" else self.measured >= self.goal
        return "met" if met else "missed"


def judge(rows: Sequence[Row], more: Mapping[str, float]) -> list[Verdict]:
    """All goals.

    Args:
        more: What is not measured as a row: ``checks_percent``, ``monitoring_percent``, ``swap_failed``,
            ``swap_growth_percent``.
    """
    ours = [row for row in rows if row.target == SHOAL]
    peers = [row for row in rows if row.target != SHOAL]

    def least(name: str, **where: object) -> float | None:
        return _best(ours, min, name, **where)

    fastest = _best(ours, max, "requests_per_s", model="tiny", connections=16, over="http")
    triton = _best(peers, max, "requests_per_s", target="triton (python backend)", model="tiny", connections=16)
    batching = _best(peers, max, "requests_per_s", target="triton (python, batching)", model="tiny", connections=16)
    python = _best([r for r in peers if r.target in _PYTHON_PEERS], max, "requests_per_s", model="tiny", connections=16)
    cnn = [
        100 * row.requests_per_s / row.raw_per_s for row in ours
        if row.model == "cnn" and row.connections == 16 and row.transport.startswith("http ")
    ]  # fmt: skip
    added = "added_p50_us"
    return [
        Verdict("added latency, tiny, 1 connection, TCP, us", "<=", 150, least(added, model="tiny", connections=1, over="http")),
        Verdict("  unix socket, us", "<=", 100, least(added, model="tiny", connections=1, over="unix")),
        Verdict("  frames, us", "<=", 70, least(added, model="tiny", connections=1, over="frames")),
        Verdict("requests/s, tiny, 16 connections, TCP: times Triton", ">=", 1.8, _ratio(fastest, triton)),
        Verdict("  times Triton with dynamic batching (no goal was set)", ">=", 1.0, _ratio(fastest, batching)),
        Verdict("  times the best Python peer", ">=", 3.0, _ratio(fastest, python)),
        Verdict("CNN, 16 connections, TCP: % of the raw run's rate", ">=", 90, max(cnn, default=None)),
        Verdict("added latency, 600 KB image, 1 connection, TCP, ms", "<=", 0.8, _ms(least(added, model="image", connections=1, over="http"))),
        Verdict("  shared memory, ms", "<=", 0.3, _ms(least(added, model="image", connections=1, over="shm"))),
        Verdict("  frames, ms", "<=", 0.3, _ms(least(added, model="image", connections=1, over="frames"))),
        Verdict("memory serving the CNN, MB", "<=", 85, least("rss_mb", model="cnn", over="http")),
        Verdict("start to first answer, s", "<=", 0.8, least("start_s", model="cnn", over="http")),
        Verdict("contract checks, % of the tiny model's throughput", "<=", 10, more.get("checks_percent")),
        Verdict("monitoring, % of the tiny model's throughput", "<=", 5, more.get("monitoring_percent")),
        Verdict("1,000 hot swaps under load: failed requests", "<=", 0, more.get("swap_failed")),
        Verdict("  memory after the last against after the tenth, % more", "<=", 5, more.get("swap_growth_percent")),
    ]  # fmt: skip


def _best(
    rows: Sequence[Row], choose: Callable[..., float | None], name: str, *, over: str = "", **where: object
) -> float | None:
    """The best figure among the rows that fit; ``over`` is how their transport's name begins."""
    found = [
        getattr(row, name) for row in rows
        if row.transport.startswith(over) and all(getattr(row, key) == value for key, value in where.items())
    ]  # fmt: skip
    return choose(found, default=None)


def _ratio(figure: float | None, other: float | None) -> float | None:
    return figure / other if figure and other else None


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3
