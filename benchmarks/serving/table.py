"""What is printed and written: the rows, and each goal beside what was measured."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.rows import QUIET_PERCENT, Row
from benchmarks.serving.verdicts import Verdict

_HEAD = (
    f"{'target':<27}{'model':<7}{'transport':<15}{'conn':>5}{'req/s':>9}{'p50 us':>9}{'p99 us':>9}{'added us':>9}"
    f"{'cpu us':>8}{'% raw':>7}{'% beside':>9}{'MB':>6}{'start s':>8}{'others %':>9}"
)


def line(row: Row) -> str:
    """One row as text."""
    return (
        f"{row.target:<27}{row.model:<7}{row.transport:<15}{row.connections:>5}{row.requests_per_s:>9.0f}"
        f"{row.p50_us:>9.0f}{row.p99_us:>9.0f}{row.added_p50_us:>9.0f}{row.cpu_us:>8.0f}"
        f"{100 * row.requests_per_s / row.raw_per_s:>7.1f}"
        f"{row.beside_percent:>9.1f}{row.rss_mb:>6.0f}{row.start_s:>8.2f}"
        f"{row.others_percent:>9.0f}"
    )


def print_table(rows: Sequence[Row], missing: Sequence[tuple[str, str]]) -> None:
    """All rows, by model and number of connections, the fastest first; then what could not be measured, and why."""
    order = {name: index for index, name in enumerate(dict.fromkeys(row.model for row in rows))}
    print(_HEAD)
    last = None
    for row in sorted(rows, key=lambda row: (order[row.model], row.connections, -row.requests_per_s)):
        if last not in (None, (row.model, row.connections)):
            print()
        last = (row.model, row.connections)
        print(line(row))
    for target, why in missing:
        print(f"{target:<27}{why}")


def print_verdicts(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
    """Each goal, what was measured, and whether it is met; and whether the machine was quiet enough to say so."""
    others = statistics.median([row.others_percent for row in rows if row.cpu_us] or [0.0])
    if others > QUIET_PERCENT:
        print(
            f"\nThis machine was not quiet: other programs took {others:.0f} % of the servers' core (median row).\n"
            "Latencies and rates are worse than the servers are; compare the processor time per request (cpu us)."
        )
    print(f"\n{'goal':<64}{'measured':>12}{'goal':>12}")
    for verdict in verdicts:
        print(
            f"{verdict.what:<64}{_figure(verdict.measured):>12}{verdict.sign + ' ' + _figure(verdict.goal):>12}"
            f"  {verdict.outcome}"
        )


def write_json(path: Path, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
    """The rows, and beside them the verdicts in a file of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    told = [{**dataclasses.asdict(verdict), "outcome": verdict.outcome} for verdict in verdicts]
    path.with_name(f"{path.stem}-verdicts.json").write_text(json.dumps(told, indent=1) + "\n")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")
