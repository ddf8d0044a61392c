"""Twins in the database: queries and updates on a connection, so that a transaction of any feature can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.messages import Desired, DesiredModel, Hardware, Reported, ReportedModel
from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.access.tables import device_secrets
from fleet_server.devices.records import DeviceRecord
from fleet_server.devices.tables import desired_models, devices, reported_models, sampling_policies
from fleet_server.upsert import upsert


def records(connection: sa.Connection, names: Sequence[str] | None = None) -> list[DeviceRecord]:
    """The devices of those names, or all, by name."""
    query = sa.select(devices, device_secrets.c.revoked_at_ms).join_from(
        devices, device_secrets, device_secrets.c.device == devices.c.name, isouter=True
    )
    if names is not None:
        query = query.where(devices.c.name.in_(names))
    rows = connection.execute(query.order_by(devices.c.name)).mappings().all()
    found = [row["name"] for row in rows] if names is not None else None
    wanted = _by_device(connection, desired_models, DesiredModel, found)
    reported = _by_device(connection, reported_models, ReportedModel, found)
    policies = sampling(connection)
    return [_record(row, wanted.get(row["name"], {}), reported.get(row["name"], {}), policies) for row in rows]


def sampling(connection: sa.Connection) -> dict[str, SamplingPolicy]:
    """The sampling policies by model name; a model without one keeps that of its package."""
    rows = connection.execute(sa.select(sampling_policies))
    return {row.model: msgspec.convert(row.policy, SamplingPolicy) for row in rows}


def desired(connection: sa.Connection, device: str) -> Desired | None:
    """What a device should be, or None where it is not known."""
    found = records(connection, [device])
    if not found:
        return None
    one = found[0]
    return Desired(
        revision=one.desired_revision,
        models=one.desired,
        sampling=one.sampling,
        report_interval_s=one.report_interval_s,
    )


def set_desired_model(connection: sa.Connection, device: str, model: str, wanted: DesiredModel) -> bool:
    """Write down that ``device`` should serve ``wanted``; False where it should already, and nothing changes."""
    key = {"device": device, "model": model}
    values = msgspec.structs.asdict(wanted)
    row = connection.execute(sa.select(desired_models).filter_by(**key)).mappings().first()
    if row is not None and dict(row) == {**key, **values}:
        return False
    upsert(connection, desired_models, key, values)
    bump(connection, [device])
    return True


def release_of(connection: sa.Connection, device: str, model: str) -> int:
    """The newest release counter that ``device`` was given for ``model``; 0 before the first."""
    column = sa.select(desired_models.c.release).filter_by(device=device, model=model)
    return connection.scalar(column) or 0


def bump(connection: sa.Connection, names: Sequence[str]) -> None:
    """Make the desired states of these devices new ones."""
    change = sa.update(devices).where(devices.c.name.in_(names))
    connection.execute(change.values(desired_revision=devices.c.desired_revision + 1))


def set_reported(connection: sa.Connection, device: str, reported: Reported, now: int) -> None:
    """Replace what a device says it is."""
    change = sa.update(devices).where(devices.c.name == device)
    connection.execute(
        change.values(
            agent_version=reported.agent_version,
            started_at_ms=reported.started_at_ms,
            api=reported.api,
            hardware=msgspec.to_builtins(reported.hardware),
            reported_revision=reported.desired_revision,
            last_seen_ms=now,
        )
    )
    connection.execute(sa.delete(reported_models).where(reported_models.c.device == device))
    rows = [
        {"device": device, "model": model, "received_at_ms": now, **msgspec.to_builtins(one)}
        for model, one in reported.models.items()
    ]
    if rows:
        connection.execute(sa.insert(reported_models), rows)


def _by_device(
    connection: sa.Connection, table: sa.Table, kind: Any, names: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    query = sa.select(table)
    if names is not None:
        query = query.where(table.c.device.in_(names))
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query).mappings():
        # Names that are SQL keywords (release) come as a subclass of str, which msgspec refuses.
        fields = {str(name): value for name, value in row.items()}
        found.setdefault(fields["device"], {})[fields["model"]] = msgspec.convert(fields, kind)
    return found


def _record(
    row: sa.RowMapping,
    wanted: dict[str, DesiredModel],
    reported: dict[str, ReportedModel],
    policies: dict[str, SamplingPolicy],
) -> DeviceRecord:
    fields = {name: value for name, value in row.items() if name not in {"hardware", "revoked_at_ms"}}
    return DeviceRecord(
        **fields,
        revoked=row["revoked_at_ms"] is not None,
        hardware=msgspec.convert(row["hardware"], Hardware),
        desired=wanted,
        reported=reported,
        sampling={model: policy for model, policy in policies.items() if model in wanted or model in reported},
    )
