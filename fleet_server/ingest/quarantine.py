"""What could not be taken is set aside with its reason, bounded: neither a fault nor an attack stops a stream."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from fleet_server.ingest.tables import set_aside

KEPT_PER_DEVICE = 200
_REASON_CHARACTERS = 2000


def put_aside(connection: sa.Connection, *, device: str, topic: str, payload: bytes, reason: str, now_ms: int) -> None:
    """Keep a payload that could not be taken; the same one again only counts. Beyond the limit the oldest goes."""
    digest = hashlib.sha256(payload).hexdigest()
    this = (set_aside.c.device == device) & (set_aside.c.sha256 == digest)
    again = sa.update(set_aside).where(this).values(times=set_aside.c.times + 1, last_at_ms=now_ms)
    if connection.execute(again).rowcount:
        return
    connection.execute(
        sa.insert(set_aside).values(
            device=device,
            sha256=digest,
            # NUL is no character of PostgreSQL's text.
            topic=topic.replace("\0", "?"),
            reason=reason.replace("\0", "?")[:_REASON_CHARACTERS],
            payload=payload,
            times=1,
            first_at_ms=now_ms,
            last_at_ms=now_ms,
        )
    )
    newest = (
        sa.select(set_aside.c.id)
        .where(set_aside.c.device == device)
        .order_by(set_aside.c.id.desc())
        .offset(KEPT_PER_DEVICE)
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(sa.delete(set_aside).where(set_aside.c.device == device, set_aside.c.id <= newest))
