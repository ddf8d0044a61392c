from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from edge_agent.contract.errors import PackageError
from edge_agent.contract.runs import RunFile, RunProgress, RunResult, RunState
from fleet_server.database import Database, metadata
from fleet_server.errors import Conflict, NotFound
from fleet_server.schedules.creation import Cause, insert_run
from fleet_server.schedules.graph import Step
from fleet_server.schedules.leases import LeaseLost
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import HARM, MANUAL, RunService, RunSettings
from fleet_server.schedules.slots import CatchUp, Schedule
from tests.fleet_server.schedules.conftest import Clock

DIGEST = "a" * 64
START = 1_750_000_000_000


def service(db: Database, clock: Callable[[], int], **changes: Any) -> RunService:
    parts: dict[str, Any] = {
        "lake": "/data/lake",
        "lake_versions": lambda: (4, 2),
        "champion": lambda model: (DIGEST, "3") if model == "digits" else None,
        "settings": RunSettings(lease_s=60, max_attempts=2, cool_down_s=600),
        "clock": clock,
    }
    return RunService(db, **(parts | changes))


def claimed(runs: RunService, worker: str = "w1") -> RunFile:
    found = runs.claim(worker)
    assert found is not None
    return found


def released(fence: int, package: str = "b" * 64) -> RunResult:
    return RunResult(
        fence=fence,
        state=RunState.RELEASED,
        reasons=("better by 3 %",),
        package=package,
        version="4",
        evaluation={"challenger": {"accuracy": 0.97}},
    )


def test_a_claimed_run_gives_all_that_training_is_a_function_of(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = runs.request("digits", HARM, "accuracy fell")
    file = claimed(runs)
    assert file == RunFile(
        run=str(run),
        model="digits",
        trigger="harm",
        reason="accuracy fell",
        logical_time="2025-06-15T15:06:40Z",
        lake="/data/lake",
        seed=file.seed,
        fence=1,
        samples_version=4,
        labels_version=2,
        champion=DIGEST,
        champion_version="3",
    )
    assert runs.claim("w2") is None
    assert runs.get(file.run)["worker"] == "w1"


def test_a_first_version_has_no_champion(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("letters")
    assert claimed(runs).champion is None


def test_a_worker_gets_only_runs_of_models_it_can_train(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("digits")
    assert runs.claim("w", ["letters"]) is None
    assert runs.claim("w", ["letters", "digits"]) is not None


def test_a_model_has_one_active_run_whoever_asks(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    first = runs.request("digits", MANUAL, "try")
    assert runs.request("digits", HARM, "worse") == first
    claimed(runs)
    assert runs.request("digits", MANUAL, "again") == first
    assert len(runs.list("digits")) == 1


def test_harm_is_declined_while_the_model_cools_down_but_a_person_is_not(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("digits")
    file = claimed(runs)
    runs.finish(file.run, RunResult(fence=file.fence, state=RunState.REFUSED, reasons=("no better",)))
    clock.forward(599)
    assert runs.request("digits", HARM, "worse") is None
    clock.forward(2)
    harm = runs.request("digits", HARM, "worse")
    assert harm is not None
    file = claimed(runs)
    runs.finish(file.run, RunResult(fence=file.fence, state=RunState.REFUSED, reasons=("no better",)))
    assert runs.request("digits", MANUAL, "now") not in {None, harm}


def test_progress_renews_the_lease(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("digits")
    file = claimed(runs)
    for _ in range(5):
        clock.forward(50)
        runs.progress(file.run, RunProgress(fence=file.fence, stage="fit", fraction=0.5, message="epoch 3"))
        runs.tick()
    row = runs.get(file.run)
    assert (row["state"], row["stage"], row["message"], row["attempts"]) == ("running", "fit", "epoch 3", 1)


def test_a_run_whose_worker_vanished_goes_to_another_and_the_old_worker_is_refused(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("digits")
    old = claimed(runs, "w1")
    clock.forward(61)
    new = claimed(runs, "w2")
    assert new.run == old.run
    assert new.fence > old.fence
    with pytest.raises(LeaseLost, match="lease was lost"):
        runs.progress(old.run, RunProgress(fence=old.fence, stage="fit", fraction=0.9))
    with pytest.raises(LeaseLost):
        runs.finish(old.run, released(old.fence))
    runs.finish(new.run, released(new.fence))
    assert runs.get(new.run)["state"] == "released"


def test_a_worker_that_wakes_before_anybody_noticed_keeps_its_run(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    runs.request("digits")
    file = claimed(runs)
    clock.forward(300)
    runs.progress(file.run, RunProgress(fence=file.fence, stage="fit", fraction=0.9))
    runs.tick()
    assert runs.get(file.run)["state"] == "running"


def test_a_run_that_loses_every_worker_is_given_up_with_the_reason(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = runs.request("digits")
    for _ in range(2):
        claimed(runs)
        clock.forward(61)
        runs.tick()
    row = runs.get(str(run))
    assert row["state"] == "failed"
    assert "given up after 2 attempts" in row["reasons"][0]
    assert runs.claim("w3") is None


def test_a_result_is_kept_with_its_reasons_and_evaluation_and_taken_once(db: Database, clock: Clock) -> None:
    told: list[tuple[str, str, str]] = []
    runs = service(db, clock, on_released=lambda *release: told.append(release))
    runs.request("digits")
    file = claimed(runs)
    runs.finish(file.run, released(file.fence))
    runs.finish(file.run, released(file.fence))
    assert told == [("digits", "b" * 64, "better by 3 %")]
    row = runs.get(file.run)
    assert row["evaluation"] == {"challenger": {"accuracy": 0.97}}
    assert (row["reasons"], row["version"]) == (["better by 3 %"], "4")


def test_a_release_that_could_not_be_handed_on_is_handed_on_by_a_later_tick(db: Database, clock: Clock) -> None:
    told: list[str] = []
    ready = False

    def on_released(model: str, package: str, reason: str) -> None:
        if not ready:
            raise PackageError("not registered yet")
        told.append(package)

    runs = service(db, clock, on_released=on_released)
    runs.request("digits")
    file = claimed(runs)
    runs.finish(file.run, released(file.fence))
    ready = True
    runs.tick()
    runs.tick()
    assert told == ["b" * 64]


@pytest.mark.parametrize(
    "result",
    [
        RunResult(fence=1, state=RunState.RUNNING, reasons=()),
        RunResult(fence=1, state=RunState.RELEASED, reasons=("good",)),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(db: Database, clock: Clock, result: RunResult) -> None:
    runs = service(db, clock)
    runs.request("digits")
    file = claimed(runs)
    with pytest.raises(Conflict):
        runs.finish(file.run, result)
    assert runs.get(file.run)["state"] == "running"


def test_an_unknown_run_is_not_found(db: Database, clock: Clock) -> None:
    with pytest.raises(NotFound, match="'nope'"):
        service(db, clock).progress("nope", RunProgress(fence=1, stage="fit", fraction=0))


def test_a_lake_that_cannot_be_read_leaves_the_run_unclaimed(db: Database, clock: Clock) -> None:
    def broken() -> tuple[int | None, int | None]:
        raise OSError("no such lake")

    run = service(db, clock).request("digits")
    with pytest.raises(OSError, match="no such lake"):
        service(db, clock, lake_versions=broken).claim("w")
    assert service(db, clock).get(str(run))["state"] == "queued"


def test_a_schedule_makes_runs_that_wait_for_each_other(db: Database, clock: Clock) -> None:
    runs, schedules = service(db, clock), ScheduleService(db, clock=clock)
    schedules.put(Schedule(name="hourly", model="digits", kind="interval", expression="3600", catch_up=CatchUp.ALL))
    assert schedules.tick() == []
    clock.forward(3 * 3600)
    assert len(schedules.tick()) == 3
    assert schedules.tick() == []
    first = claimed(runs)
    assert runs.claim("w2") is None, "one run of a model at a time"
    runs.finish(first.run, RunResult(fence=first.fence, state=RunState.UNCHANGED, reasons=("nothing new",)))
    assert claimed(runs).logical_time > first.logical_time


def test_a_deleted_or_disabled_schedule_makes_no_runs(db: Database, clock: Clock) -> None:
    schedules = ScheduleService(db, clock=clock)
    for name in ("a", "b"):
        schedules.put(Schedule(name=name, model="digits", kind="interval", expression="60"))
    schedules.delete("a")
    schedules.put(Schedule(name="b", model="digits", kind="interval", expression="60", enabled=False))
    clock.forward(120)
    assert schedules.tick() == []
    assert [(row["name"], row["next_ms"]) for row in schedules.list()] == [("b", None)]
    with pytest.raises(NotFound):
        schedules.delete("a")


def compete(url: str, worker: str, until_ms: int, barrier: Any, results: Any) -> None:
    """One server process: its clock runs through the slots while it claims and finishes what it gets."""
    db = Database(url)
    clock = Clock(START)
    # The two clocks drift apart by many leases, which is not what this is about.
    runs, schedules = service(db, clock, settings=RunSettings(lease_s=1e6)), ScheduleService(db, clock=clock)
    done: list[tuple[str, str]] = []
    barrier.wait(60)
    while clock.at_ms < until_ms:
        clock.forward(30)
        schedules.tick()
        while (file := runs.claim(worker)) is not None:
            done.append((file.run, file.logical_time))
            runs.finish(file.run, RunResult(fence=file.fence, state=RunState.UNCHANGED, reasons=()))
    db.close()
    results.put(done)


def compete_over(url: str) -> list[tuple[str, str]]:
    db = Database(url)
    metadata.create_all(db.engine)
    ScheduleService(db, clock=Clock(START)).put(
        Schedule(name="s", model="digits", kind="interval", expression="60", catch_up=CatchUp.ALL)
    )
    db.close()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    until = START + 40 * 60_000
    servers = [context.Process(target=compete, args=(url, f"w{n}", until, barrier, results)) for n in range(2)]
    for server in servers:
        server.start()
    done = [*results.get(timeout=100), *results.get(timeout=100)]
    for server in servers:
        server.join(60)
        assert server.exitcode == 0
    db = Database(url)
    leftover = service(db, Clock(until))
    while (file := leftover.claim("last")) is not None:  # what one made after the other's last look
        done.append((file.run, file.logical_time))
        leftover.finish(file.run, RunResult(fence=file.fence, state=RunState.UNCHANGED, reasons=()))
    db.close()
    return done


def assert_every_slot_ran_once(done: list[tuple[str, str]]) -> None:
    assert len(done) == len({run for run, _ in done}) == len({slot for _, slot in done}) == 40


def test_two_server_processes_on_one_sqlite_file_run_every_slot_once(database_url: str) -> None:
    assert_every_slot_ran_once(compete_over(database_url))


@pytest.mark.real_parts("initdb", "postgres")
def test_two_server_processes_on_one_postgresql_run_every_slot_once(postgres_url: str) -> None:
    assert_every_slot_ran_once(compete_over(postgres_url))


@pytest.mark.real_parts("initdb", "postgres")
def test_on_postgresql_a_request_that_loses_the_race_gets_the_winners_run(postgres_url: str) -> None:
    db = Database(postgres_url)
    metadata.drop_all(db.engine)
    metadata.create_all(db.engine)
    runs = service(db, Clock())
    run = runs.request("digits")
    # The row another server committed after this one looked: the unique index, not the look, decides.
    with db.write() as connection:
        assert insert_run(connection, "digits", Step(), Cause(trigger=HARM, reason="late", now_ms=START)) is None
        assert connection.execute(sa.text("select count(*) from runs")).scalar() == 1
    assert runs.request("digits", HARM, "late") == run
    db.close()


def test_a_release_that_can_never_be_handed_on_is_said_once_and_then_left(
    db: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def refuse(_model: str, digest: str, _reason: str) -> None:
        asked.append(digest)
        raise NotFound("there is no package bbbbbbbbbbbb")

    runs = service(db, clock, on_released=refuse)
    runs.request("digits")
    run = claimed(runs)
    runs.finish(run.run, released(run.fence))
    runs.tick()
    runs.tick()
    assert len(asked) == 1
    assert "goes no further: there is no package" in caplog.text
    assert runs.get(run.run)["state"] == "released"


def test_a_release_is_handed_on_once_though_tick_and_worker_come_together(db: Database, clock: Clock) -> None:
    begun, go_on, told = threading.Event(), threading.Event(), []

    def slow(_model: str, digest: str, _reason: str) -> None:
        told.append(digest)
        begun.set()
        go_on.wait(30)

    runs = service(db, clock, on_released=slow)
    runs.request("digits")
    run = claimed(runs)
    worker = threading.Thread(target=runs.finish, args=(run.run, released(run.fence)))
    worker.start()
    assert begun.wait(30)
    ticker = threading.Thread(target=runs.tick)
    ticker.start()
    ticker.join(0.3)
    go_on.set()
    worker.join(30)
    ticker.join(30)
    assert told == ["b" * 64]


def test_a_release_that_goes_no_further_says_why_in_its_runs_reasons(db: Database, clock: Clock) -> None:
    def refuse(_model: str, _package: str, _reason: str) -> None:
        raise Conflict("rollout r-1, which a person made, goes first")

    runs = service(db, clock, on_released=refuse)
    runs.request("digits")
    file = claimed(runs)
    runs.finish(file.run, released(file.fence))
    said = "not rolled out: rollout r-1, which a person made, goes first"
    assert runs.get(file.run)["reasons"] == ["better by 3 %", said]
    runs.tick()
    assert runs.get(file.run)["reasons"] == ["better by 3 %", said]
