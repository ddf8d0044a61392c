"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from fleet_server.database import Database
from fleet_server.devices.tables import devices
from fleet_server.rollouts.tables import rollouts

# Anybody may send a request with a method of his own making; each would be a series kept for good.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServerMetrics:
    """Counters of this process and gauges read from the database at each scrape."""

    def __init__(self, db: Database) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(_FleetCollector(db))
        self._tick_errors = Counter(
            "shoal_tick_errors", "Periodic work that raised, by what it was.", ["work"], registry=self.registry
        )
        self._requests = Counter(
            "shoal_http_requests",
            "Requests answered, by method and status.",
            ["method", "status"],
            registry=self.registry,
        )

    def tick_failed(self, work: str) -> None:
        """Periodic work has raised."""
        self._tick_errors.labels(work).inc()

    def request_answered(self, method: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(method if method in _METHODS else "other", str(status)).inc()


class _FleetCollector(Collector):
    def __init__(self, db: Database) -> None:
        self._db = db

    def collect(self) -> Iterator[Metric]:
        with self._db.read() as connection:
            online = dict.fromkeys((True, False), 0)
            grouped = sa.select(devices.c.online, sa.func.count()).group_by(devices.c.online)
            online.update({bool(row[0]): int(row[1]) for row in connection.execute(grouped)})
            states = sa.select(rollouts.c.state, sa.func.count()).group_by(rollouts.c.state)
            by_state = {str(row[0]): int(row[1]) for row in connection.execute(states)}
            behind = connection.scalar(
                sa.select(sa.func.count()).where(devices.c.reported_revision < devices.c.desired_revision)
            )
        fleet = GaugeMetricFamily("shoal_devices", "Devices, by whether they are connected.", labels=["online"])
        for value, count in online.items():
            fleet.add_metric([str(value).lower()], count)
        yield fleet
        yield GaugeMetricFamily("shoal_devices_behind", "Devices that have yet to act on a change.", value=behind or 0)
        by = GaugeMetricFamily("shoal_rollouts", "Rollouts, by state.", labels=["state"])
        for state, count in by_state.items():
            by.add_metric([state], count)
        yield by
