"""Rollouts in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.manifest import decode_manifest
from fleet_server.devices.records import DeviceRecord
from fleet_server.errors import NotFound
from fleet_server.models.tables import packages
from fleet_server.rollouts import tables
from fleet_server.rollouts.rollout import Gate, Member, Progress, Rollout, Sight, State, wave_size
from fleet_server.rollouts.state import to_revert
from fleet_server.upsert import upsert


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout, for the API and the console.

    Args:
        note: Why it halted, or what it waits for.
        automatic: The server made it after a training run; no person asked for it.
        wave_devices: For each wave, how many devices of the present fleet are assigned at its end.
        counts: Devices by where they are: waiting, assigned, committed, failed, skipped, reverted.
    """

    id: str
    model: str
    package: str
    version: str
    waves: tuple[int | float, ...]
    wave_devices: tuple[int, ...]
    gate: Gate
    state: State
    wave: int
    reason: str
    note: str
    revert: bool
    automatic: bool
    created_at_ms: int
    ended_at_ms: int | None
    counts: dict[str, int]
    devices: tuple[Member, ...]


def insert(connection: sa.Connection, rollout: Rollout, now_ms: int) -> None:
    """Write a new rollout down."""
    connection.execute(
        sa.insert(tables.rollouts).values(
            id=rollout.id,
            model=rollout.model,
            package=rollout.package,
            version=rollout.version,
            waves=list(rollout.waves),
            gate=msgspec.to_builtins(rollout.gate),
            reason=rollout.reason,
            automatic=rollout.automatic,
            created_at_ms=now_ms,
            **_changing(rollout),
        )
    )


def save(connection: sa.Connection, before: Rollout, after: Rollout, now_ms: int) -> None:
    """Write down what has changed between ``before`` and ``after``."""
    if before == after:
        return
    values: dict[str, Any] = _changing(after)
    if after.state in {State.HALTED, State.DONE} and before.state is not after.state:
        values["ended_at_ms"] = now_ms
    connection.execute(sa.update(tables.rollouts).where(tables.rollouts.c.id == after.id).values(values))
    for device in before.members.keys() - after.members.keys():
        connection.execute(sa.delete(tables.members).filter_by(rollout=after.id, device=device))
    for device, member in after.members.items():
        if before.members.get(device) != member:
            fields = dataclasses.asdict(member)
            del fields["device"]
            upsert(connection, tables.members, {"rollout": after.id, "device": device}, fields)


def load(connection: sa.Connection, rollout_id: str) -> Rollout:
    """One rollout.

    Raises:
        NotFound: There is none of that identifier.
    """
    row = _row(connection, rollout_id)
    fields = {name: row[name] for name in ("id", "model", "package", "version", "wave", "healthy_since_ms", "reason")}
    return Rollout(
        **fields,
        note=row["note"],
        revert=row["revert"],
        automatic=row["automatic"],
        waves=tuple(row["waves"]),
        gate=msgspec.convert(row["gate"], Gate),
        state=State(row["state"]),
        members={member.device: member for member in _members(connection, rollout_id)},
        watched_s=_watched_s(connection, row["package"]),
    )


def record(connection: sa.Connection, rollout_id: str) -> RolloutRecord:
    """One rollout for people.

    Raises:
        NotFound: There is none of that identifier.
    """
    rollout = load(connection, rollout_id)
    row = _row(connection, rollout_id)
    return RolloutRecord(
        id=rollout.id,
        model=rollout.model,
        package=rollout.package,
        version=rollout.version,
        waves=rollout.waves,
        wave_devices=tuple(wave_size(wave, len(rollout.members)) for wave in rollout.waves),
        gate=rollout.gate,
        state=rollout.state,
        wave=rollout.wave,
        reason=rollout.reason,
        note=rollout.note,
        revert=rollout.revert,
        automatic=rollout.automatic,
        created_at_ms=row["created_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        counts={progress.value: rollout.count(progress) for progress in Progress},
        devices=tuple(rollout.members.values()),
    )


def unsettled(connection: sa.Connection, model: str | None = None) -> Sequence[str]:
    """Identifiers of the rollouts with something left to do, oldest first."""
    query = sa.select(tables.rollouts.c.id).where(tables.rollouts.c.settled.is_(False))
    if model is not None:
        query = query.where(tables.rollouts.c.model == model)
    return connection.scalars(query.order_by(tables.rollouts.c.created_at_ms, tables.rollouts.c.id)).all()


def newest(connection: sa.Connection, model: str | None, limit: int) -> Sequence[str]:
    """Identifiers of the newest rollouts, of one model or all, newest first."""
    query = sa.select(tables.rollouts.c.id)
    if model is not None:
        query = query.where(tables.rollouts.c.model == model)
    order = (tables.rollouts.c.created_at_ms.desc(), tables.rollouts.c.id)
    return connection.scalars(query.order_by(*order).limit(limit)).all()


def sight(device: DeviceRecord, model: str) -> Sight:
    """What the rollout's rules see of a device."""
    one = device.reported.get(model)
    if one is None:
        return Sight(online=device.online, changed_at_ms=device.online_changed_at_ms)
    return Sight(
        online=device.online,
        changed_at_ms=device.online_changed_at_ms,
        package=one.package,
        version=one.version,
        step=one.step,
        target=one.target,
        release=one.release,
        reason=one.reason,
        requests=one.requests,
        failed=one.failed,
        waits_until_ms=one.waits_until_ms,
        retries=one.retries,
    )


def _changing(rollout: Rollout) -> dict[str, Any]:
    over = rollout.state is State.DONE or (rollout.state is State.HALTED and not to_revert(rollout))
    return {
        "state": rollout.state.value,
        "wave": rollout.wave,
        "healthy_since_ms": rollout.healthy_since_ms,
        "note": rollout.note,
        "revert": rollout.revert,
        "settled": over,
    }


def _watched_s(connection: sa.Connection, package: str) -> float:
    """How long a device may watch the package, by its manifest, without anything being wrong."""
    manifest = decode_manifest(connection.scalars(sa.select(packages.c.manifest).filter_by(digest=package)).one())
    return manifest.shadow.seconds + manifest.probation.seconds


def _row(connection: sa.Connection, rollout_id: str) -> sa.RowMapping:
    row = connection.execute(sa.select(tables.rollouts).filter_by(id=rollout_id)).mappings().first()
    if row is None:
        raise NotFound(f"there is no rollout {rollout_id!r}; `shoal rollouts list` shows those there are")
    return row


def _members(connection: sa.Connection, rollout_id: str) -> list[Member]:
    query = sa.select(tables.members).filter_by(rollout=rollout_id).order_by(tables.members.c.device)
    found = []
    for row in connection.execute(query).mappings():
        fields = {name: value for name, value in row.items() if name not in {"rollout", "progress"}}
        found.append(Member(**fields, progress=Progress(row["progress"])))
    return found
