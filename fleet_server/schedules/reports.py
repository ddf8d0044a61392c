"""What runs write and measure while under way: kept, bounded per run. Works inside the caller's transaction."""

from __future__ import annotations

import math
from typing import Any

import sqlalchemy as sa

from fleet_server.schedules.tables import run_logs, run_metrics

MOST_LOG_BYTES = 256 << 10  # of one run; the oldest pieces go first
_MOST_PIECE_BYTES = 64 << 10
_MOST_POINTS = 1_000
_MOST_NAMES = 64


def add_log(connection: sa.Connection, run: str, text: str, *, attempt: int, at_ms: int) -> None:
    """Keep a piece of a run's log; where the run's log is too long, its beginning goes."""
    piece = text.replace("\0", "")[-_MOST_PIECE_BYTES:]  # PostgreSQL stores no NUL
    if not piece:
        return
    values = {"run": run, "attempt": attempt, "at_ms": at_ms, "text": piece}
    connection.execute(sa.insert(run_logs).values(values))
    length = sa.func.length(run_logs.c.text)
    newer = sa.func.sum(length).over(order_by=run_logs.c.id.desc())
    kept = sa.select(run_logs.c.id, newer.label("newer")).where(run_logs.c.run == run).subquery()
    too_old = sa.select(kept.c.id).where(kept.c.newer > MOST_LOG_BYTES)
    connection.execute(sa.delete(run_logs).where(run_logs.c.id.in_(too_old)))


def add_metrics(
    connection: sa.Connection, run: str, metrics: dict[str, float], *, attempt: int, at_ms: int, fraction: float
) -> None:
    """Keep a point of a run's metrics over time; beyond a thousand, every other of them goes, the newest stay."""
    finite = {name.replace("\0", "")[:100]: value for name, value in metrics.items() if math.isfinite(value)}
    if not finite:
        return
    point = dict(list(finite.items())[:_MOST_NAMES])
    values = {"run": run, "attempt": attempt, "at_ms": at_ms, "fraction": fraction, "metrics": point}
    connection.execute(sa.insert(run_metrics).values(values))
    of_run = sa.select(run_metrics.c.id).where(run_metrics.c.run == run).order_by(run_metrics.c.id)
    points = connection.execute(of_run).scalars().all()
    if len(points) > _MOST_POINTS:
        connection.execute(sa.delete(run_metrics).where(run_metrics.c.id.in_(points[1:-1:2])))


def log_after(connection: sa.Connection, run: str, after: int) -> tuple[str, int]:
    """What a run has written since.

    Args:
        after: 0, or what an earlier call gave as next.
    Returns:
        The text, and what to ask with next.
    """
    query = sa.select(run_logs).where(run_logs.c.run == run, run_logs.c.id > after).order_by(run_logs.c.id)
    pieces = connection.execute(query).mappings().all()
    return "".join(piece["text"] for piece in pieces), (pieces[-1]["id"] if pieces else after)


def metrics_of(connection: sa.Connection, run: str) -> list[dict[str, Any]]:
    """A run's metrics over time, the oldest first."""
    columns = (run_metrics.c.at_ms, run_metrics.c.attempt, run_metrics.c.fraction, run_metrics.c.metrics)
    query = sa.select(*columns).where(run_metrics.c.run == run).order_by(run_metrics.c.id)
    return [dict(row) for row in connection.execute(query).mappings()]


def forget(connection: sa.Connection, kept: sa.Select[tuple[str]]) -> int:
    """Drop the logs and metrics of all runs but those; returns how many pieces went."""
    gone = 0
    for table in (run_logs, run_metrics):
        gone += connection.execute(sa.delete(table).where(table.c.run.not_in(kept))).rowcount
    return gone
