"""What people read of the commands, from a real API with a fleet behind it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from fastapi import FastAPI

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.messages import (
    DeviceMetrics,
    Event,
    EventKind,
    GpuMetrics,
    MetricsReport,
    ModelMetrics,
    ReportedRuntime,
    Status,
)
from edge_agent.contract.runs import RunProgress, RunResult, RunState
from edge_agent.contract.topics import Stream
from fleet_server import http_errors
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.cli import main
from fleet_server.commands.tables import figure
from fleet_server.devices import routes as devices_routes
from fleet_server.models import routes as models_routes
from fleet_server.monitoring import routes as monitoring_routes
from fleet_server.monitoring.intake import on_metrics
from fleet_server.monitoring.service import MonitoringService
from fleet_server.rollouts import routes as rollouts_routes
from fleet_server.rollouts.rollout import Gate
from fleet_server.schedules import routes as schedules_routes
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService
from tests.fakes.served_app import served
from tests.fleet_server.fleet import Fleet
from tests.fleet_server.monitoring.fleet import envelope, reference

Shoal = Callable[..., str]


@pytest.fixture
def runs(fleet: Fleet) -> RunService:
    return RunService(
        fleet.db,
        lake="/lake",
        lake_versions=lambda: (4, None),
        champion=lambda _model: ("c" * 64, "1"),
        clock=fleet.clock,
    )


@pytest.fixture
def shoal(fleet: Fleet, runs: RunService) -> Iterator[Shoal]:
    """Runs a command against the fleet, as its administrator; gives what it prints."""
    guard = Guard(fleet.access)
    viewer, admin, trainer = (guard.require(role) for role in (Role.VIEWER, Role.ADMIN, Role.TRAINER))
    app = FastAPI()
    http_errors.install(app)
    app.include_router(devices_routes.routes(fleet.devices, guard, disconnect=lambda _device: None))
    app.include_router(models_routes.routes(fleet.models, guard, withdraw=fleet.rollouts.withdraw))
    app.include_router(rollouts_routes.routes(fleet.rollouts, guard, waves=(1, 1.0), gate=Gate(soak_s=0)))
    app.include_router(
        schedules_routes.routes(
            runs,
            ScheduleService(fleet.db),  # whose calendar is ours
            require_trainer=trainer,
            require_viewer=viewer,
            require_admin=admin,
        )
    )
    monitoring = MonitoringService(fleet.db, reference)
    app.include_router(monitoring_routes.routes(monitoring, require_viewer=viewer, clock=fleet.clock))
    token = fleet.access.create_token(Role.ADMIN, "test")
    with served(app) as client:

        def invoke(*arguments: str) -> str:
            done = CliRunner().invoke(main, [*arguments, "--server", str(client.base_url), "--token", token])
            assert done.exit_code == 0, done.output
            return done.output

        yield invoke


def enveloped(event: Event) -> Envelope:
    return Envelope(
        fleet="test",
        device="d0",
        epoch="e1",
        stream=Stream.EVENTS,
        sequence=1,
        previous=0,
        sent_at_ms=1,
        body=msgspec.Raw(msgspec.msgpack.encode(event)),
    )


def board(fleet: Fleet, machine: DeviceMetrics, *, rows: int = 200) -> None:
    """A minute of d0's reports."""
    counts = (rows, *[0] * (BUCKETS - 1))
    model = ModelMetrics(
        model="digits", version="1", package="a", requests=rows, rows=rows, refused=0, failed=0, latency_counts=counts
    )
    report = MetricsReport(from_ms=fleet.now_ms - 60_000, until_ms=fleet.now_ms, models=(model,), machine=machine)
    with fleet.db.write() as connection:
        on_metrics(connection, envelope("d0", Stream.METRICS, report), report)


def roll_out(fleet: Fleet, version: str) -> None:
    fleet.rollouts.create("digits", version, (1, 1.0), gate=Gate(soak_s=0))
    for _ in range(5):
        fleet.tick()


def test_a_rollout_that_found_no_device_shows_no_wave(fleet: Fleet, shoal: Shoal) -> None:
    fleet.publish("1")
    roll_out(fleet, "1")
    line = shoal("rollouts", "list").splitlines()[1]
    assert "done   -     none yet: those that enrol get it  a person" in line


def test_waves_are_counted_from_one_everywhere(fleet: Fleet, shoal: Shoal) -> None:
    fleet.publish("1")
    fleet.join("d0")
    fleet.rollouts.create("digits", "1", (1, 1.0), gate=Gate(soak_s=0), automatic=True)
    fleet.tick()
    rollout = fleet.rollouts.list()[0].id
    shown = shoal("rollouts", "show", rollout)
    assert "wave     1 of 2" in shown
    assert "made by  the server, after a training run" in shown
    assert "d0      1     assigned" in shown


def test_a_halted_rollout_says_what_is_left_to_do(fleet: Fleet, shoal: Shoal) -> None:
    fleet.publish("1")
    fleet.rollouts.create("digits", "1", (1, 1.0), gate=Gate(soak_s=0), start=False)
    rollout = fleet.rollouts.list()[0].id
    assert "next" not in shoal("rollouts", "show", rollout)
    shoal("rollouts", "halt", rollout, "--reason", "a wrong turn")
    shown = shoal("rollouts", "show", rollout)
    assert "a wrong turn" in shown
    assert "next     a halted rollout is final; `shoal rollouts create digits VERSION` makes another" in shown
    assert "state    running" in shoal("rollouts", "create", "digits", "1")


def test_events_say_which_step_and_which_version(fleet: Fleet, shoal: Shoal) -> None:
    digest = fleet.publish("7")
    fleet.join("d0")
    with fleet.db.write() as connection:
        for step in ("downloading", "probation"):
            event = Event(
                kind=EventKind.UPDATE_STEP,
                at_ms=1,
                model="digits",
                package=digest,
                detail={"step": step, "release": 3},
            )
            fleet.devices.on_event(connection, enveloped(event), event)
    shown = shoal("devices", "show", "d0")
    for step in ("downloading", "probation"):
        assert f"update-step  digits 7  {step}, release 3" in shown


def test_a_device_that_never_connected_is_enrolled_as_the_console_says(fleet: Fleet, shoal: Shoal) -> None:
    fleet.join("d0").disconnect()
    with fleet.db.write() as connection:
        fleet.devices.enrolled(connection, "d1", fleet.devices.get("d0").hardware)
    d0, d1 = shoal("devices", "list").splitlines()[1:]
    assert "offline" in d0
    assert "enrolled" in d1


def test_a_withdrawal_says_which_version_is_the_champion_now(fleet: Fleet, shoal: Shoal) -> None:
    for version in ("1", "2", "3"):
        fleet.publish(version)
        roll_out(fleet, version)
    assert "The champion is 2: its rollout was the last to finish" in shoal(
        "models", "withdraw", "digits", "3", "--reason", "bad"
    )
    roll_out(fleet, "1")  # back, on purpose
    assert "The champion is 1" in shoal("models", "withdraw", "digits", "2", "--reason", "bad")
    assert "There is no champion now" in shoal("models", "withdraw", "digits", "1", "--reason", "bad")


def test_a_run_is_readable_from_its_request_to_its_end(runs: RunService, shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits", "--reason", "new lens").strip()
    assert "queued: waits for a worker" in shoal("runs", "show", run)
    file = runs.claim("w1")
    assert file is not None
    runs.progress(run, RunProgress(fence=file.fence, stage="fit", fraction=0.4, message="epoch 2 of 5"))
    assert "running, 40% fit: epoch 2 of 5" in shoal("runs", "show", run)
    evaluation = {"current": {"champion": 0.9, "challenger": 0.97}}
    runs.finish(
        run,
        RunResult(fence=file.fence, state=RunState.REFUSED, reasons=("slice dark lost",), evaluation=evaluation),
    )
    shown = shoal("runs", "show", run)
    for words in (
        "manual: new lens",
        "samples of lake version 4, to beat 1 (cccccccccccc)",
        "challenger 97.0%, champion 90.0%",
        "  - slice dark lost",
        f"shoal runs show {run} --json",
    ):
        assert words in shown
    assert "{" not in shown


def test_a_run_is_watched_to_its_end_with_its_log_and_metrics(runs: RunService, shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits", "--seed", "3", "--retries", "1").strip()
    file = runs.claim("w1")
    assert file is not None
    assert file.seed == 3
    progress = RunProgress(fence=file.fence, stage="fit", fraction=0.4, metrics={"val_loss": 0.25}, log="epoch 2\n")
    runs.progress(run, progress)
    assert shoal("runs", "logs", run) == "epoch 2\n"
    assert "val_loss 0.25" in shoal("runs", "show", run)
    assert "VAL_LOSS" in shoal("runs", "metrics", run)
    runs.finish(run, RunResult(fence=file.fence, state=RunState.REFUSED, reasons=("no better",)))
    watched = shoal("runs", "watch", run)
    assert "epoch 2\n" in watched
    assert "refused  val_loss 0.25" in watched
    assert "no better" in watched
    assert run in shoal("runs", "list", "--state", "refused", "--kind", "train")


def test_a_run_is_named_by_the_beginning_of_its_identifier(runs: RunService, shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits").strip()
    assert run in shoal("runs", "show", run[:8])
    assert shoal("runs", "cancel", run[:8]) == f"run {run} is cancelled\n"
    assert "cancelled" in shoal("runs", "logs", run[:8]) + shoal("runs", "list")
    assert shoal("runs", "retry", run[:8]) == f"run {run} is queued again\n"


def test_who_asks_for_what_is_asked_for_already_is_told(shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits", "--reason", "new lens").strip()
    again = shoal("runs", "start", "digits", "--reason", "me too")
    assert again.startswith(f"{run}\n")
    assert f"run {run} is queued already, asked for because: new lens; nothing new was asked" in again


@pytest.mark.parametrize(
    ("value", "reads"), [(20_234.6, "20235"), (0.25, "0.25"), (3.14159, "3.142"), (2.5e7, "2.5e+07"), (0.0, "0")]
)
def test_a_figure_reads_without_an_exponent(value: float, reads: str) -> None:
    assert figure(value) == reads


def test_a_failed_step_is_taken_up_again_from_the_command_line(runs: RunService, shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits").strip()
    file = runs.claim("w1")
    assert file is not None
    runs.finish(run, RunResult(fence=file.fence, state=RunState.FAILED, reasons=("no memory",)))
    assert shoal("runs", "retry", run) == f"run {run} is queued again\n"


GRAPH = """
model = "digits"
kind = "cron"
expression = "0 3 * * *"
catch_up = "all"

[[steps]]
name = "tend"
kind = "upkeep"

[[steps]]
name = "train"
needs = ["tend"]
retries = 2
timeout_s = 3600
resources = { cpus = 2 }
"""


def test_a_schedule_is_put_previewed_backfilled_and_started(runs: RunService, shoal: Shoal, tmp_path: Path) -> None:
    assert "no schedules yet" in shoal("schedules", "list")
    (tmp_path / "nightly.toml").write_text(GRAPH)
    assert "schedule nightly: 0 3 * * * UTC, next " in shoal(
        "schedules", "put", "nightly", "--file", str(tmp_path / "nightly.toml")
    )
    assert "tend, train" in shoal("schedules", "list")
    assert "2 after 60 s" in shoal("schedules", "show", "nightly")
    previewed = shoal(
        "schedules",
        "preview",
        "nightly",
        "--down-from",
        "2020-03-01",
        "--down-until",
        "2020-03-03T12:00",
        "--count",
        "1",
    )
    assert previewed == (
        "each time: tend -> train\n"
        "missed while no server ran (catch-up all):\n"
        "  2020-03-01T03:00:00Z  caught up\n"
        "  2020-03-02T03:00:00Z  caught up\n"
        "  2020-03-03T03:00:00Z  caught up\n"
        "then:\n"
        "  2020-03-04T03:00:00Z\n"
    )
    filling = ("schedules", "backfill", "nightly", "--from", "2020-03-01", "--to", "2020-03-02T12:00")
    assert "2 slots would get runs; 0 have theirs already" in shoal(*filling, "--dry-run")
    assert runs.list() == []
    assert "2 slots got 4 runs; 0 have theirs already" in shoal(*filling)
    assert "0 slots got 0 runs; 2 have theirs already" in shoal(*filling)
    first, second = shoal("schedules", "start", "nightly").split()
    assert "blocked: waits for tend" in shoal("runs", "show", second)
    listed = shoal("runs", "list", "--schedule", "nightly")
    assert first in listed
    slots = [line.split("2020-03-0")[1][:11] for line in listed.splitlines() if "2020-03-0" in line]
    assert slots == ["2 03:00:00Z", "2 03:00:00Z", "1 03:00:00Z", "1 03:00:00Z"]
    assert shoal("schedules", "delete", "nightly") == "schedule nightly is deleted\n"


def test_a_schedule_of_labels_or_by_hand_has_no_slots(shoal: Shoal) -> None:
    shoal("schedules", "put", "fresh", "--model", "digits", "--labels", "500")
    shoal("schedules", "put", "byhand", "--model", "digits", "--manual", "--disabled")
    listed = shoal("schedules", "list")
    assert "every 500 new labels" in listed
    assert "by hand (disabled)" in listed


def test_a_run_is_cancelled_from_the_command_line(runs: RunService, shoal: Shoal) -> None:
    run = shoal("runs", "start", "digits").strip()
    assert shoal("runs", "cancel", run, "--reason", "typo") == f"run {run} is cancelled\n"
    assert runs.get(run)["reasons"] == ["cancelled: typo"]


def test_a_device_shows_its_gpus_power_throttling_and_energy_per_inference(fleet: Fleet, shoal: Shoal) -> None:
    fleet.join("d0")
    gpu = GpuMetrics(
        name="Orin",
        busy_percent=63.0,
        memory_used_bytes=3 << 30,
        memory_total_bytes=8 << 30,
        temperature_c=71.6,
        power_w=4.25,
        clock_mhz=420.0,
        max_clock_mhz=625.0,
        throttled=("temperature",),
    )
    board(fleet, DeviceMetrics(gpus=(gpu,), power_w=12.43, energy_j=746.0, power_mode="15W", temperature_c=66.0))
    shown = shoal("devices", "show", "d0")
    for words in (
        "power        12.4 W, mode 15W",
        "energy       3.7 J of the whole board per inference, 200 in the last 10 min",
        "temperature  66 °C",
        "throttled    temperature; in 100% of the last 10 min's reports",
        "Orin  63%   3.0 GiB of 8.0 GiB  72 °C        4.2 W  420 of 625 MHz  temperature",
    ):
        assert words in shown
    assert "12.4 W, throttled: temperature" in shoal("devices", "list")
    fleet.devices.on_status("d0", Status(online=False, at_ms=1))
    assert "12.4 W" not in shoal("devices", "list")  # it is not of the present


def test_a_board_that_tells_nothing_gets_no_empty_words(fleet: Fleet, shoal: Shoal) -> None:
    fleet.join("d0")
    board(fleet, DeviceMetrics(cpu_percent=10.0))
    shown = shoal("devices", "show", "d0")
    for word in ("power", "energy", "throttled", "GPU", "RUNS ON"):
        assert word not in shown


def test_a_board_that_answered_nothing_shows_what_it_took(fleet: Fleet, shoal: Shoal) -> None:
    fleet.join("d0")
    board(fleet, DeviceMetrics(energy_j=540.0), rows=0)
    assert "540 J of the whole board, no inference in the last 10 min" in shoal("devices", "show", "d0")


def test_each_model_says_what_it_runs_on_why_and_what_is_being_built(fleet: Fleet, shoal: Shoal) -> None:
    device = fleet.join("d0")
    fleet.publish("1")
    roll_out(fleet, "1")
    device.update()
    reason = "an engine is being built"
    runtime = ReportedRuntime(
        name="onnxruntime-cpu", reason=reason, building="building a TensorRT engine", building_percent=42.4
    )
    device.models["digits"] = msgspec.structs.replace(device.models["digits"], runtime=runtime)
    device.report()
    shown = shoal("devices", "show", "d0")
    assert "digits  onnxruntime-cpu  fp32       building a TensorRT engine, 42%  an engine is being built" in shown
    assert "digits 1 on onnxruntime-cpu fp32" in shoal("devices", "list")
    device.models["digits"] = msgspec.structs.replace(device.models["digits"], runtime=None)
    device.report()
    assert " on " not in shoal("devices", "list")


def test_the_graph_of_the_documentation_is_taken_as_it_stands(shoal: Shoal, repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "schedules.md").read_text()
    graph = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "graph.toml").write_text(graph)
    shoal("schedules", "put", "documented", "--file", str(tmp_path / "graph.toml"))
    assert "tend, train, answer" in shoal("schedules", "list")
    commands = text.split("```console\n")[1].split("```")[0].splitlines()
    for command in commands[:3]:
        shoal(*shlex.split(command)[1:])
    assert "every 3600 s" in shoal("schedules", "list")
