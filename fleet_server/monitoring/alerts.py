"""Alerts: open while their cause lasts, with since when and why. Every function works in the caller's transaction."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from fleet_server.monitoring.tables import alerts

_log = logging.getLogger(__name__)

DRIFT = "drift"
HARM = "harm"
FLEET = ""


def settle(
    connection: sa.Connection, *, model: str, kind: str, device: str, active: bool, reason: str, now_ms: int
) -> bool:
    """Open, keep or close the alert of ``kind`` for a device, or for the fleet (``FLEET``).

    Args:
        reason: In words; of an open alert the newest one is kept.
    Returns:
        Whether it is open now.
    """
    key = sa.and_(
        alerts.c.model == model, alerts.c.kind == kind, alerts.c.device == device, alerts.c.closed_at_ms.is_(None)
    )
    found = connection.execute(sa.select(alerts.c.id, alerts.c.reason).where(key)).one_or_none()
    if active and found is None:
        values = {"model": model, "kind": kind, "device": device, "opened_at_ms": now_ms, "reason": reason}
        connection.execute(sa.insert(alerts).values(values))
        _log.warning("%s of %s%s: %s", kind, model, f" on {device}" if device else "", reason)
    elif active and found is not None and found.reason != reason:
        connection.execute(sa.update(alerts).where(alerts.c.id == found.id).values(reason=reason))
    elif not active and found is not None:
        values = {"closed_at_ms": now_ms, "closed_reason": reason}
        connection.execute(sa.update(alerts).where(alerts.c.id == found.id).values(values))
        _log.info("%s of %s%s is over: %s", kind, model, f" on {device}" if device else "", reason)
    return active


def open_devices(connection: sa.Connection, model: str, kind: str) -> set[str]:
    """The devices for which an alert of ``kind`` is open."""
    query = sa.select(alerts.c.device).where(
        alerts.c.model == model, alerts.c.kind == kind, alerts.c.closed_at_ms.is_(None), alerts.c.device != FLEET
    )
    return set(connection.execute(query).scalars())
