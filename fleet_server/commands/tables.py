"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from edge_agent.contract.printable import printable
from fleet_server.clock import now_ms

as_json = click.option("--json", "json_", is_flag=True, help="Print the server's answer as JSON.")


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings, columns aligned; ``empty`` where there are none."""
    if not rows:
        click.echo(empty)
        return
    cells = [[printable(str(cell)) if cell is not None else "-" for cell in row] for row in rows]
    widths = [max(len(heading), *(len(row[at]) for row in cells)) for at, heading in enumerate(headings)]
    for line in ([heading.upper() for heading in headings], *cells):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one per line."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        click.echo(f"{name.ljust(width)}  {printable(str(value)) if value not in (None, '') else '-'}")


def ago(at_ms: int | None) -> str:
    """How long ago a time was, in words."""
    if at_ms is None:
        return "never"
    seconds = max(0, (now_ms() - at_ms) // 1000)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def when(at_ms: int | None) -> str:
    """A time, readable, UTC as its Z says: schedules, logs and the API say it so too."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ms / 1000)) if at_ms is not None else "-"


def figure(value: float) -> str:
    """A measured number in four digits, or all before the point; with an exponent only where it is huge or tiny."""
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}"
