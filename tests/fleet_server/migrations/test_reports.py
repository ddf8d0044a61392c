"""What devices report is stored, and added up, by a database that the revisions made: of each kind, new or upgraded."""

from __future__ import annotations

import sqlalchemy as sa

from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.messages import (
    DeviceMetrics,
    GpuMetrics,
    Hardware,
    MetricsReport,
    ModelMetrics,
    Reported,
    ReportedModel,
    ReportedRuntime,
    UpdateStep,
)
from edge_agent.contract.topics import Stream
from fleet_server.database import Database
from fleet_server.devices import twin_store
from fleet_server.migrate import upgrade
from fleet_server.monitoring.intake import on_metrics
from fleet_server.monitoring.machines import machine_records
from tests.fleet_server.migrations.revisions import fleet_of_one, without_revision
from tests.fleet_server.monitoring.fleet import envelope

RUNTIME = ReportedRuntime(name="tensorrt", precision="fp16", reason="tensorrt fp16: 0.9 ms against 6.1 ms")


def reported(**models: ReportedModel) -> Reported:
    hardware = Hardware(architecture="aarch64", system="Linux")
    return Reported(agent_version="1", started_at_ms=1, desired_revision=1, hardware=hardware, models=models)


def test_models_of_before_have_no_runtime_and_those_reported_since_have_theirs(db: Database) -> None:
    without_revision(db)
    fleet_of_one(db)
    old = {"device": "d0", "model": "digits", "version": "1", "package": "abc", "step": "committed", "target": "abc"}
    with db.write() as connection:
        values = {**old, "reason": "", "release": 1, "rollout": "", "requests": 5, "failed": 0, "received_at_ms": 1}
        table = sa.table("reported_models", *(sa.column(name) for name in values))
        connection.execute(sa.insert(table).values(values))
    upgrade(db)
    with db.write() as connection:
        (before,) = twin_store.records(connection, ["d0"])
        assert (before.reported["digits"].requests, before.reported["digits"].runtime) == (5, None)
        plain = ReportedModel(version="1", package="abc", step=UpdateStep.COMMITTED)
        served = ReportedModel(version="1", package="abc", step=UpdateStep.COMMITTED, runtime=RUNTIME)
        twin_store.set_reported(connection, "d0", reported(digits=served, gauges=plain), 2)
        (after,) = twin_store.records(connection, ["d0"])
        assert {name: one.runtime for name, one in after.reported.items()} == {"digits": RUNTIME, "gauges": None}
        nulls = sa.text("select model from reported_models where runtime is null")
        assert connection.execute(nulls).scalars().all() == ["gauges"]


def test_energy_and_throttling_are_added_up_over_the_last_windows(db: Database) -> None:
    upgrade(db)
    gpu = GpuMetrics(name="Orin", busy_percent=41.0, temperature_c=float("nan"))
    hot = GpuMetrics(name="Orin", throttled=("temperature",))
    with db.write() as connection:
        for minute, energy_j, gpus in (
            (1, 900.0, (gpu,)),
            (20, 700.0, (hot,)),
            (21, None, (gpu,)),
            (22, 800.0, (gpu,)),
        ):
            machine = DeviceMetrics(gpus=gpus, energy_j=energy_j, power_w=12.5, power_mode="15W")
            report = MetricsReport(
                from_ms=(minute - 1) * 60_000, until_ms=minute * 60_000, models=(_answered(300),), machine=machine
            )
            on_metrics(connection, envelope("d0", Stream.METRICS, report), report)
        (found,) = machine_records(connection, ["d0"])
    assert (found.device, found.at_ms, found.state.power_mode, found.throttled) == ("d0", 22 * 60_000, "15W", ())
    assert found.state.gpus == (GpuMetrics(name="Orin", busy_percent=41.0),)  # JSON knows no NaN
    assert (found.energy_j, found.inferences, found.joules_per_inference) == (1_500.0, 600, 2.5)
    assert (found.throttled_share, found.throttled_at_ms) == (1 / 3, 20 * 60_000)


def _answered(rows: int) -> ModelMetrics:
    counts = (rows, *[0] * (BUCKETS - 1))
    return ModelMetrics(
        model="digits", version="1", package="abc", requests=rows, rows=rows, refused=0, failed=0, latency_counts=counts
    )
