"""The machines that models run on: the newest state of each, and what its last reports add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.messages import DeviceMetrics
from fleet_server.monitoring.tables import machine_windows, machines

# Long enough for several reports of a slow device, short enough to show what a board does now.
RECENT_S = 600.0


class MachineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One device's machine. Figures of the recent windows are None where its board does not tell.

    Args:
        at_ms: When it was in that ``state``, by its own clock.
        window_s: The stretch before ``at_ms`` that the other figures are of.
        energy_j: What the whole board took in it, idle time included; ``inferences``: rows that its models answered.
        joules_per_inference: The one divided by the other, of the windows whose energy is known.
        throttled_share: Share of the windows at whose end something ran slower than it could, 0..1.
        throttled_at_ms: The last of those ends.
    """

    device: str
    at_ms: int
    state: DeviceMetrics
    window_s: float
    energy_j: float | None = None
    inferences: int = 0
    joules_per_inference: float | None = None
    throttled_share: float | None = None
    throttled_at_ms: int | None = None

    @property
    def throttled(self) -> tuple[str, ...]:
        """Why it is slower than it could be now: the board's reasons, then each GPU's."""
        reasons = [*self.state.throttled, *(reason for gpu in self.state.gpus for reason in gpu.throttled)]
        return tuple(dict.fromkeys(reasons))


def machine_records(
    connection: sa.Connection, devices: Sequence[str] | None = None, *, window_s: float = RECENT_S
) -> list[MachineRecord]:
    """The machines of those devices, or all that have ever reported, by name of the device."""
    recent = _recent(round(window_s * 1000), devices)
    query = sa.select(machines, recent).outerjoin(recent, recent.c.whose == machines.c.device)
    if devices is not None:
        query = query.where(machines.c.device.in_(devices))
    rows = connection.execute(query.order_by(machines.c.device)).mappings()
    return [_record(row, window_s) for row in rows]


def _recent(window_ms: int, devices: Sequence[str] | None) -> sa.Subquery:
    """Each machine's last windows, added up. By its own clock: ours may stand elsewhere."""
    known = machine_windows.c.energy_j.is_not(None)
    throttled = machine_windows.c.throttled
    within = sa.and_(
        machine_windows.c.device == machines.c.device, machine_windows.c.until_ms > machines.c.at_ms - window_ms
    )
    query = (
        sa.select(
            machines.c.device.label("whose"),
            sa.func.sum(machine_windows.c.energy_j).label("energy_j"),
            sa.func.sum(sa.case((known, machine_windows.c.inferences), else_=0)).label("inferences"),
            sa.func.count(machine_windows.c.id).label("windows"),
            sa.func.sum(sa.case((throttled, 1), else_=0)).label("throttled_windows"),
            sa.func.max(sa.case((throttled, machine_windows.c.until_ms))).label("throttled_at_ms"),
        )
        .join(machine_windows, within)
        .group_by(machines.c.device)
    )
    if devices is not None:
        query = query.where(machines.c.device.in_(devices))
    return query.subquery("recent")


def _record(row: sa.RowMapping, window_s: float) -> MachineRecord:
    energy_j: float | None = row["energy_j"]
    inferences = int(row["inferences"] or 0)  # PostgreSQL adds 64-bit numbers up to decimals
    windows = row["windows"] or 0
    state: Any = row["state"]
    return MachineRecord(
        device=row["device"],
        at_ms=row["at_ms"],
        state=msgspec.convert(state, DeviceMetrics),
        window_s=window_s,
        energy_j=energy_j,
        inferences=inferences,
        joules_per_inference=energy_j / inferences if energy_j is not None and inferences else None,
        throttled_share=row["throttled_windows"] / windows if windows else None,
        throttled_at_ms=row["throttled_at_ms"],
    )
