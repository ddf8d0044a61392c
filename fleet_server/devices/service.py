"""The fleet's devices: desired states go out, reported states and events come in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import msgspec
import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope, encode
from edge_agent.contract.errors import NetworkError
from edge_agent.contract.messages import DesiredModel, Event, Hardware, Reported, Status
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import DeviceTopics
from fleet_server.access.tables import device_secrets
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.devices import twin_store
from fleet_server.devices.records import DeviceRecord, EventRecord
from fleet_server.devices.tables import desired_models, devices, events, fleet_settings, sampling_policies
from fleet_server.errors import NotFound
from fleet_server.upsert import upsert

EVENTS_KEPT_MS = 90 * 86_400_000
_REPORT_INTERVAL = "report_interval_s"

_log = logging.getLogger(__name__)

Publish = Callable[[str, bytes, bool], None]


class DeviceService:
    """Devices and their twins.

    A desired state is written down first and published after the commit; :meth:`tick` publishes what a crash or a
    broker that was away has left unpublished. So a device hears of each change at least once.

    Args:
        publish: Sends (topic, payload, retain) to the broker; a NetworkError or OSError means: not now.
        report_interval_s: How often a device that enrols is to report, until :meth:`desire_report_interval` says
            otherwise; None leaves it to the device.
    """

    def __init__(
        self,
        db: Database,
        publish: Publish,
        fleet: str,
        *,
        report_interval_s: float | None = None,
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._publish, self._fleet, self._clock = db, publish, fleet, clock
        self._report_interval_s = report_interval_s
        self._published: dict[str, int] = {}  # in memory: a new broker or server starts with no retained messages
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._publishing = threading.Lock()  # held from reading to sending: an older state must not be retained last

    def enrolled(self, connection: sa.Connection, device: str, hardware: Hardware, was_revoked: bool = False) -> None:
        """Make room for a device, in the transaction of its enrolment; one that comes again keeps its twin.

        Args:
            was_revoked: Rollouts went on without it: what it was told may be long out of date, and is forgotten.
        """
        first = {
            "online": False,
            "desired_revision": 0,
            "reported_revision": 0,
            "report_interval_s": self._interval_s(connection),
        }
        values = {"hardware": msgspec.to_builtins(hardware), "enrolled_at_ms": self._clock()}
        upsert(connection, devices, {"name": device}, values, first=first)
        if was_revoked:
            connection.execute(sa.delete(desired_models).where(desired_models.c.device == device))
        twin_store.bump(connection, [device])

    def list(self) -> Sequence[DeviceRecord]:
        """All devices, revoked ones too, by name."""
        with self._db.read() as connection:
            return twin_store.records(connection)

    def get(self, device: str) -> DeviceRecord:
        """One device.

        Raises:
            NotFound: There is none of that name.
        """
        with self._db.read() as connection:
            found = twin_store.records(connection, [device])
        if not found:
            raise NotFound(f"there is no device {device!r}; `shoal devices list` shows those there are")
        return found[0]

    def active(self, connection: sa.Connection) -> Sequence[str]:
        """Names of the devices that are enrolled and not revoked."""
        living = sa.select(devices.c.name).join(device_secrets, device_secrets.c.device == devices.c.name)
        return connection.scalars(living.where(device_secrets.c.revoked_at_ms.is_(None)).order_by(devices.c.name)).all()

    def without(self, connection: sa.Connection, model: str) -> Sequence[str]:
        """Names of the active devices that were never told to serve ``model``."""
        told = sa.select(desired_models.c.device).where(desired_models.c.model == model)
        living = sa.select(devices.c.name).join(device_secrets, device_secrets.c.device == devices.c.name)
        query = living.where(device_secrets.c.revoked_at_ms.is_(None), devices.c.name.not_in(told))
        return connection.scalars(query.order_by(devices.c.name)).all()

    def desire_model(self, device: str, model: str, wanted: DesiredModel) -> None:
        """Tell a device what it should serve."""
        with self._db.write() as connection:
            changed = twin_store.set_desired_model(connection, device, model, wanted)
        if changed:
            self.publish_desired(device)

    def desire_sampling(self, model: str, policy: SamplingPolicy) -> None:
        """Tell every device that serves ``model``, now or later, how much of it to send home."""
        with self._db.write() as connection:
            upsert(connection, sampling_policies, {"model": model}, {"policy": msgspec.to_builtins(policy)})
            concerned = [one.name for one in twin_store.records(connection) if model in one.sampling]
            twin_store.bump(connection, concerned)
        for device in concerned:
            self.publish_desired(device)

    def desire_report_interval(self, seconds: float) -> None:
        """Tell every device, now or later, how often to report."""
        with self._db.write() as connection:
            upsert(connection, fleet_settings, {"name": _REPORT_INTERVAL}, {"value": seconds})
            connection.execute(sa.update(devices).values(report_interval_s=seconds))
            names = connection.scalars(sa.select(devices.c.name)).all()
            twin_store.bump(connection, names)
        for device in names:
            self.publish_desired(device)

    def publish_desired(self, device: str) -> None:
        """Publish a device's desired state, retained; what the broker does not take now, :meth:`tick` tries again."""
        with self._publishing:
            with self._db.read() as connection:
                wanted = twin_store.desired(connection, device)
            if wanted is None:
                return
            try:
                self._publish(DeviceTopics(self._fleet, device).desired, encode(wanted), True)
            except (OSError, NetworkError) as error:
                _log.warning("the desired state of %s is not published yet: %s", device, error)
                return
            with self._lock:
                self._published[device] = wanted.revision

    def broker_connected(self) -> None:
        """The broker is there (again): it may have forgotten what it retained, so :meth:`tick` publishes all."""
        with self._lock:
            self._published.clear()

    def forget_connections(self) -> None:
        """At the server's start: nobody is known to be online until its status says so."""
        with self._db.write() as connection:
            online = sa.update(devices).where(devices.c.online)
            connection.execute(online.values(online=False, online_changed_at_ms=self._clock()))

    def revoked(self, device: str) -> None:
        """A device was shut out: what it says about its presence is no longer heard, so it counts as offline."""
        with self._db.write() as connection:
            one = sa.update(devices).where(devices.c.name == device)
            connection.execute(one.values(online=False, online_changed_at_ms=self._clock()))

    def on_reported(self, device: str, reported: Reported) -> None:
        """A device says what it is."""
        with self._db.write() as connection:
            if not self._known(connection, device):
                return
            twin_store.set_reported(connection, device, reported, self._clock())

    def on_status(self, device: str, status: Status) -> None:
        """A device has connected, or its connection has ended. One that missed a change is told again."""
        with self._db.write() as connection:
            if not self._known(connection, device):
                return
            one = sa.select(devices.c.online, devices.c.desired_revision, devices.c.reported_revision).filter_by(
                name=device
            )
            row = connection.execute(one).one()
            now = self._clock()
            values: dict[str, object] = {"online": status.online}
            if status.online:
                values["last_seen_ms"] = now
            if row.online != status.online:
                values["online_changed_at_ms"] = now
            connection.execute(sa.update(devices).where(devices.c.name == device).values(values))
        if status.online and row.reported_revision < row.desired_revision:
            self.publish_desired(device)

    def on_event(self, connection: sa.Connection, envelope: Envelope, event: Event) -> None:
        """Keep an event, in the transaction that moves its stream's watermark."""
        connection.execute(
            sa.insert(events).values(
                device=envelope.device,
                at_ms=event.at_ms,
                received_at_ms=self._clock(),
                kind=event.kind.value,
                model=event.model,
                package=event.package,
                reason=event.reason,
                detail=event.detail,
            )
        )

    def seen(self, device: str) -> None:
        """Something came from a device just now; cheap, written down by the next :meth:`tick`."""
        with self._lock:
            self._seen[device] = self._clock()

    def events(
        self, device: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> Sequence[EventRecord]:
        """Events, newest first, of one device or all; ``before``: only those with a smaller id."""
        query = sa.select(events).order_by(events.c.id.desc()).limit(limit)
        if device is not None:
            query = query.where(events.c.device == device)
        if before is not None:
            query = query.where(events.c.id < before)
        with self._db.read() as connection:
            return [EventRecord(**row) for row in connection.execute(query).mappings()]

    def tick(self, _now: int) -> None:
        """Publish what is not published yet, and write down who was seen. Call it about once a second."""
        with self._lock:
            seen, self._seen = self._seen, {}
            published = dict(self._published)
        if seen:
            with self._db.write() as connection:
                change = sa.update(devices).where(devices.c.name == sa.bindparam("device"))
                rows = [{"device": device, "at": at} for device, at in seen.items()]
                connection.execute(change.values(last_seen_ms=sa.bindparam("at")), rows)
        with self._db.read() as connection:
            rows_now = connection.execute(sa.select(devices.c.name, devices.c.desired_revision)).all()
        for row in rows_now:
            if published.get(row.name, -1) < row.desired_revision:
                self.publish_desired(row.name)

    def prune(self, now: int) -> None:
        """Delete events of more than ``EVENTS_KEPT_MS`` ago."""
        with self._db.write() as connection:
            connection.execute(sa.delete(events).where(events.c.received_at_ms < now - EVENTS_KEPT_MS))

    def _interval_s(self, connection: sa.Connection) -> float | None:
        asked = connection.scalar(sa.select(fleet_settings.c.value).where(fleet_settings.c.name == _REPORT_INTERVAL))
        return float(asked) if asked is not None else self._report_interval_s

    def _known(self, connection: sa.Connection, device: str) -> bool:
        living = sa.select(device_secrets.c.device).filter_by(device=device, revoked_at_ms=None)
        if connection.scalar(living) is None:
            _log.warning("ignoring a message of %s: no such device is enrolled, or it is revoked", device)
            return False
        return True
