"""What the server keeps of the devices' machines."""

from __future__ import annotations

import sqlalchemy as sa

from edge_agent.contract.messages import DeviceMetrics, GpuMetrics, MetricsReport
from edge_agent.contract.topics import Stream
from fleet_server.database import Database
from fleet_server.monitoring.intake import on_metrics
from fleet_server.monitoring.machines import MachineRecord, machine_records
from fleet_server.monitoring.service import MonitoringService
from fleet_server.monitoring.tables import machine_windows
from tests.fleet_server.monitoring.fleet import START, envelope, reference


def report(db: Database, machine: DeviceMetrics, *, device: str = "d0", minute: int = 1) -> None:
    """One minute of a device without a model."""
    until_ms = START + minute * 60_000
    body = MetricsReport(from_ms=until_ms - 60_000, until_ms=until_ms, models=(), machine=machine)
    with db.write() as connection:
        on_metrics(connection, envelope(device, Stream.METRICS, body), body)


def windows(db: Database) -> int:
    with db.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(machine_windows)).scalar_one()


def machine(db: Database, device: str = "d0") -> MachineRecord:
    (found,) = MonitoringService(db, reference).machines(device)
    return found


def test_a_machine_that_tells_nothing_of_its_board_is_known_and_leaves_no_windows(db: Database) -> None:
    report(db, DeviceMetrics(cpu_percent=12.5))
    assert windows(db) == 0
    found = machine(db)
    assert (found.state.cpu_percent, found.energy_j, found.joules_per_inference) == (12.5, None, None)
    assert (found.throttled_share, found.throttled_at_ms, found.throttled) == (None, None, ())


def test_energy_of_a_board_that_answered_nothing_is_no_energy_per_inference(db: Database) -> None:
    report(db, DeviceMetrics(energy_j=600.0, power_w=10.0))
    found = machine(db)
    assert (found.energy_j, found.inferences, found.joules_per_inference) == (600.0, 0, None)


def test_reasons_of_board_and_gpus_are_named_once_each(db: Database) -> None:
    gpus = (
        GpuMetrics(name="a", throttled=("power cap",)),
        GpuMetrics(name="b", throttled=("power cap", "temperature")),
    )
    report(db, DeviceMetrics(throttled=("over-current",), gpus=gpus))
    assert machine(db).throttled == ("over-current", "power cap", "temperature")
    assert machine(db).throttled_share == 1.0


def test_figures_that_cannot_be_are_not_added_up(db: Database) -> None:
    for minute, energy_j in enumerate((float("inf"), float("nan"), -5.0, 1e300, 60.0), start=1):
        report(db, DeviceMetrics(energy_j=energy_j, power_w=energy_j), minute=minute)
    assert (windows(db), machine(db).energy_j) == (5, 60.0)


def test_an_older_report_that_comes_late_does_not_become_the_newest_state(db: Database) -> None:
    report(db, DeviceMetrics(power_mode="15W", power_w=1.0), minute=2)
    report(db, DeviceMetrics(power_mode="MAXN", power_w=2.0), minute=1)
    assert machine(db).state.power_mode == "15W"


def test_each_machine_is_judged_by_its_own_clock(db: Database) -> None:
    report(db, DeviceMetrics(energy_j=1.0), device="d0", minute=1)
    report(db, DeviceMetrics(energy_j=2.0), device="behind", minute=-100_000)
    found = MonitoringService(db, reference).machines()
    assert [(one.device, one.energy_j) for one in found] == [("behind", 2.0), ("d0", 1.0)]


def test_old_windows_are_deleted_with_the_other_figures(db: Database) -> None:
    report(db, DeviceMetrics(power_w=1.0))
    service = MonitoringService(db, reference)
    service.prune(START)
    assert windows(db) == 1
    service.prune(START + 400 * 86_400_000)
    assert windows(db) == 0
    assert machine(db).state.power_w == 1.0  # the newest state stays


def test_recent_windows_are_found_by_index_and_not_by_reading_all(db: Database) -> None:
    for minute in range(1, 40):
        report(db, DeviceMetrics(energy_j=1.0), device=f"d{minute % 3}", minute=minute)
    asked: list[tuple[str, tuple[object, ...]]] = []

    def remember(
        _connection: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object
    ) -> None:
        asked.append((statement, parameters))

    with db.read() as connection:
        sa.event.listen(db.engine, "before_cursor_execute", remember)
        for devices in (None, ["d1"]):
            machine_records(connection, devices)
        sa.event.remove(db.engine, "before_cursor_execute", remember)
        assert len(asked) == 2
        for statement, parameters in asked:
            plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            (step,) = [step for step in plan if " machine_windows " in f"{step} "]
            assert "ix_machine_windows_device_until_ms (device=? AND until_ms>?)" in step, plan
