"""Shoal's goals, and what a run says about each. A missed goal is said, and is no error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.serving.rows import Row

SHOAL = "shoal"
_TRITON = ("triton (python backend)",)
_TRITON_BATCHING = ("triton (python, batching)",)
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
    return [
        *_latency(rows),
        *_throughput(rows),
        Verdict("memory serving the CNN, MB", "<=", 85, _least(rows, "rss_mb", "cnn", "http")),
        Verdict("start to first answer, s", "<=", 0.8, _least(rows, "start_s", "cnn", "http")),
        Verdict("contract checks, % of the tiny model's throughput", "<=", 10, more.get("checks_percent")),
        Verdict("monitoring, % of the tiny model's throughput", "<=", 5, more.get("monitoring_percent")),
        Verdict("1,000 hot swaps under load: failed requests", "<=", 0, more.get("swap_failed")),
        Verdict("  memory after the last against after the tenth, % more", "<=", 5, more.get("swap_growth_percent")),
    ]


def _latency(rows: Sequence[Row]) -> list[Verdict]:
    tiny = "added latency, tiny, 1 connection"
    found = [
        Verdict(f"{tiny}, {what}, us", "<=", goal, _least(rows, "added_p50_us", "tiny", over))
        for what, over, goal in (("TCP", "http", 150), ("unix socket", "unix", 100), ("frames", "frames", 70))
    ]
    for what, over, goal in (("TCP", "http", 0.8), ("shared memory", "shm", 0.3), ("frames", "frames", 0.3)):
        added_us = _least(rows, "added_p50_us", "image", over)
        added_ms = None if added_us is None else added_us / 1e3
        found.append(Verdict(f"added latency, 600 KB image, 1 connection, {what}, ms", "<=", goal, added_ms))
    return found


def _throughput(rows: Sequence[Row]) -> list[Verdict]:
    ours = _rate(rows, SHOAL)
    cnn = [
        100 * row.requests_per_s / row.raw_per_s
        for row in rows
        if (row.target, row.model, row.connections) == (SHOAL, "cnn", 16) and row.transport.startswith("http ")
    ]
    triton, batching, python = _rate(rows, *_TRITON), _rate(rows, *_TRITON_BATCHING), _rate(rows, *_PYTHON_PEERS)
    # The hand-written endpoint for raw bytes looks at nothing: that it is left out makes this the fairer comparison.
    checking = _rate([row for row in rows if row.transport != "http raw"], *_PYTHON_PEERS)
    many = "requests/s, tiny, 16 connections, TCP"
    return [
        Verdict(f"{many}: times Triton", ">=", 1.8, _ratio(ours, triton)),
        Verdict("  times Triton with dynamic batching (no goal was set)", ">=", 1.0, _ratio(ours, batching)),
        Verdict("  times the best Python peer", ">=", 3.0, _ratio(ours, python)),
        Verdict("  times the best of them that checks its input (no goal was set)", ">=", 3.0, _ratio(ours, checking)),
        Verdict("CNN, 16 connections, TCP: % of the raw run's rate", ">=", 90, max(cnn, default=None)),
    ]


def _least(rows: Sequence[Row], figure: str, model: str, over: str) -> float | None:
    """The least of Shoal's figures at one connection; ``over`` is how the transport's name begins."""
    return min(
        (
            float(getattr(row, figure))
            for row in rows
            if (row.target, row.model, row.connections) == (SHOAL, model, 1) and row.transport.startswith(over)
        ),
        default=None,
    )


def _rate(rows: Sequence[Row], *targets: str) -> float | None:
    """The highest rate of these servers with the tiny model and 16 connections over TCP."""
    return max(
        (
            row.requests_per_s
            for row in rows
            if row.target in targets
            and (row.model, row.connections) == ("tiny", 16)
            and row.transport.startswith("http ")
        ),
        default=None,
    )


def _ratio(figure: float | None, other: float | None) -> float | None:
    return figure / other if figure and other else None
