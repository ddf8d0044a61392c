"""Graphs as rows: made once, released step by step, tried again, skipped, cancelled and taken up anew."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edge_agent.contract.runs import RunFile, RunKind, RunResult, RunState
from fleet_server.database import Database, metadata
from fleet_server.errors import Conflict
from fleet_server.schedules.graph import Resources, Step
from fleet_server.schedules.leases import Claimant, LeaseLost
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService, RunSettings
from fleet_server.schedules.slots import CatchUp, Schedule
from fleet_server.schedules.tables import schedules
from tests.fleet_server.schedules.conftest import Clock
from tests.fleet_server.schedules.test_graph import JOB

START = 1_750_000_000_000
KINDS = (RunKind.TRAIN, RunKind.BATCH, RunKind.UPKEEP)
STEPS = (
    Step(name="tend", kind=RunKind.UPKEEP),
    Step(name="train", needs=("tend",), retries=2, backoff_s=60),
    Step(name="answer", kind=RunKind.BATCH, needs=("train",), options={"job": JOB}),
)


class Place:
    """Schedules and runs over one database, and a worker of all kinds."""

    def __init__(self, db: Database, clock: Callable[[], int], **settings: Any) -> None:
        chosen = RunSettings(**({"lease_s": 60, "max_attempts": 2} | settings))
        self.schedules = ScheduleService(db, settings=chosen, clock=clock)
        self.runs = RunService(
            db, lake="/lake", lake_versions=lambda: (4, 2), champion=lambda _: None, settings=chosen, clock=clock
        )

    def put(self, *steps: Step, **changes: Any) -> None:
        given = {"kind": "interval", "expression": "3600", "catch_up": CatchUp.ALL} | changes
        self.schedules.put(Schedule(name="nightly", model="digits", steps=steps or STEPS, **given))

    def claim(self, **asks: Any) -> RunFile | None:
        return self.runs.claim(Claimant(**({"worker": "w", "kinds": KINDS} | asks)))

    def claimed(self, **asks: Any) -> RunFile:
        found = self.claim(**asks)
        assert found is not None
        return found

    def end(self, file: RunFile, state: RunState = RunState.DONE, **result: Any) -> None:
        given: dict[str, Any] = {"reasons": ("so it is",)} | result
        self.runs.finish(file.run, RunResult(fence=file.fence, state=state, **given))

    def states(self) -> dict[str, str]:
        return {run["step"]: run["state"] for run in self.runs.list()}


@pytest.fixture
def place(db: Database, clock: Clock) -> Place:
    one = Place(db, clock)
    one.put()
    clock.forward(3600)
    assert len(one.schedules.tick()) == 3
    return one


def test_each_step_waits_for_those_it_needs_and_gets_what_it_asks_for(place: Place) -> None:
    assert place.states() == {"tend": "queued", "train": "blocked", "answer": "blocked"}
    tend = place.claimed()
    assert (tend.step, tend.kind, place.claim()) == ("tend", RunKind.UPKEEP, None)
    place.end(tend)
    train = place.claimed()
    assert (train.step, train.kind, train.logical_time) == ("train", RunKind.TRAIN, tend.logical_time)
    place.end(train, RunState.UNCHANGED)
    answer = place.claimed()
    assert (answer.kind, answer.options) == (RunKind.BATCH, {"job": JOB})
    place.end(answer)
    assert place.states() == {"tend": "done", "train": "unchanged", "answer": "done"}
    graph = place.runs.get(answer.run)["graph"]
    assert [(one["step"], one["state"]) for one in graph] == [
        ("answer", "done"),
        ("tend", "done"),
        ("train", "unchanged"),
    ]


def test_a_failure_that_may_pass_is_tried_again_after_a_pause_that_doubles(place: Place, clock: Clock) -> None:
    place.end(place.claimed())
    for pause_s in (60, 120):
        place.end(place.claimed(), RunState.FAILED, reasons=("no memory",), retry=True)
        clock.forward(pause_s - 1)
        assert place.claim() is None
        clock.forward(1)
    file = place.claimed()
    run = place.runs.get(file.run)
    assert (file.attempt, run["failures"], run["state"]) == (3, 2, "running")
    place.end(file, RunState.FAILED, reasons=("no memory",), retry=True)
    assert place.states() == {"tend": "done", "train": "failed", "answer": "skipped"}
    (answer,) = place.runs.list(kind=RunKind.BATCH)
    assert answer["reasons"] == ["not begun: step 'train', which it needs, failed"]


def test_a_report_of_a_failure_that_comes_twice_is_one_failure(place: Place, clock: Clock) -> None:
    place.end(place.claimed())
    file = place.claimed()
    place.end(file, RunState.FAILED, retry=True)
    place.end(file, RunState.FAILED, retry=True)
    clock.forward(60)
    assert place.runs.get(place.claimed().run)["failures"] == 1


def test_a_failure_that_would_come_again_is_not_tried_again(place: Place) -> None:
    place.end(place.claimed())
    place.end(place.claimed(), RunState.FAILED, reasons=("model.toml: no such field",))
    assert place.states()["train"] == "failed"


def test_a_person_takes_up_a_failed_step_and_what_was_skipped_because_of_it(place: Place) -> None:
    tend = place.claimed()
    place.end(tend, RunState.FAILED)
    assert place.states() == {"tend": "failed", "train": "skipped", "answer": "skipped"}
    again = place.runs.retry(tend.run)
    assert len(again) == 3
    assert place.states() == {"tend": "queued", "train": "blocked", "answer": "blocked"}
    with pytest.raises(LeaseLost):
        place.end(tend)
    file = place.claimed()
    assert (file.run, file.attempt) == (tend.run, 1)
    with pytest.raises(Conflict, match="is running: only one that failed is tried again"):
        place.runs.retry(tend.run)


def test_a_cancelled_step_skips_what_needs_it_while_it_is_blocked_too(place: Place) -> None:
    (train,) = place.runs.list(kind=RunKind.TRAIN)
    place.runs.cancel(train["id"], "no")
    assert place.states() == {"tend": "queued", "train": "cancelled", "answer": "skipped"}


def test_a_server_killed_between_an_end_and_what_follows_is_made_up_for_by_a_tick(
    place: Place, db: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.runs, "_settle", lambda: None)
    place.end(place.claimed())
    assert place.states()["train"] == "blocked"
    Place(db, clock).runs.tick()
    assert place.states()["train"] == "queued"


def test_a_step_added_later_is_made_up_for_by_a_backfill_with_what_is_there(place: Place, clock: Clock) -> None:
    for _ in STEPS:
        place.end(place.claimed())
    place.put(*STEPS, Step(name="report", kind=RunKind.UPKEEP, needs=("answer",)))
    done = place.schedules.backfill("nightly", START, clock.at_ms, "the new step")
    assert (len(done["slots"]), len(done["runs"])) == (2, 5), "the slot that is there lacks a step, the first lacks all"
    states = [run["state"] for run in place.runs.list() if run["step"] == "report"]
    assert sorted(states) == ["blocked", "queued"]


def test_the_higher_priority_goes_first_a_person_before_the_calendar_the_past_last(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.put(Step(), expression="3600")
    clock.forward(3600)
    place.schedules.backfill("nightly", START - 3_600_000, START, "the past")
    place.schedules.tick()
    urgent = place.runs.request("letters", step=Step(priority=50))
    asked = place.runs.request("faces")
    order = []
    while (file := place.claim()) is not None:
        order.append((file.trigger, file.run if file.trigger == "manual" else file.logical_time))
        place.end(file)
    assert [trigger for trigger, _ in order] == ["manual", "manual", "schedule", "backfill", "backfill"]
    assert [run for _, run in order[:2]] == [urgent, asked]
    assert order[3][1] < order[4][1], "the oldest first"


def test_a_worker_gets_only_what_it_has_room_for_and_knows_to_do(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.runs.request("digits", step=Step(resources=Resources(cpus=8, gpus=1), priority=5))
    place.runs.request("letters", step=Step(kind=RunKind.BATCH, options={"job": JOB}))
    assert place.claim(cpus=4, gpus=0, kinds=(RunKind.TRAIN,)) is None
    assert place.claim(cpus=8, gpus=0, kinds=(RunKind.TRAIN,)) is None
    batch = place.claimed(cpus=4, gpus=0, models=("digits",))
    assert batch.kind is RunKind.BATCH, "it needs no recipe"
    assert place.claimed(cpus=8, gpus=1).cpus == 8


def test_two_batches_of_one_job_take_turns_beside_a_training(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.put(Step(name="answer", kind=RunKind.BATCH, options={"job": JOB}), Step(name="train"), expression="60")
    clock.forward(120)
    place.schedules.tick()
    first, second = place.claimed(), place.claimed()
    assert {first.kind, second.kind} == {RunKind.BATCH, RunKind.TRAIN}
    assert place.claim() is None
    place.end(first if first.kind is RunKind.BATCH else second)
    assert place.claimed().kind is RunKind.BATCH


def test_a_worker_that_begins_anew_goes_on_at_once_with_what_it_had(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.runs.request("digits")
    old = place.claimed(holding=())
    new = place.claimed(holding=())
    assert (new.run, new.attempt, new.fence > old.fence) == (old.run, 2, True)
    assert place.claim(holding=(new.run,)) is None
    with pytest.raises(LeaseLost):
        place.end(old)
    place.end(new)


def test_a_worker_that_stops_hands_its_run_back_and_it_counts_as_no_attempt(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.runs.request("digits")
    for _ in range(5):
        file = place.claimed()
        assert file.attempt == 1
        place.runs.hand_back(file.run, file.fence, "the worker stops")
    with pytest.raises(LeaseLost):
        place.runs.hand_back(file.run, file.fence, "again")
    assert place.runs.get(file.run)["message"] == "the worker stops; queued again"


def test_a_server_that_was_away_gives_workers_one_more_lease(db: Database, clock: Clock) -> None:
    Place(db, clock).runs.request("digits")
    file = Place(db, clock).claimed()
    clock.forward(3600)
    back = Place(db, clock)
    back.runs.tick()
    assert back.runs.get(file.run)["state"] == "running"
    back.end(file)
    assert back.runs.get(file.run)["state"] == "done"


def test_a_retry_is_made_from_the_data_of_the_first_attempt(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.runs.request("digits", step=Step(retries=1, backoff_s=0))
    first = place.claimed()
    place.end(first, RunState.FAILED, retry=True)
    place.runs._lake_versions = lambda: (9, 9)
    assert place.claimed().samples_version == first.samples_version == 4


def test_equal_inputs_are_known_again_and_seeds_are_the_models_own(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    seeds = set()
    tried: dict[str, str] = {}
    for inputs in ("a" * 64, None, "b" * 64):
        run = place.runs.request("digits")
        file = place.claimed()
        assert file.tried == tried
        seeds.add(file.seed)
        place.end(file, RunState.REFUSED, inputs=inputs)
        tried |= {str(run): inputs} if inputs else {}
        clock.forward(1)
    assert len(seeds) == 1
    place.runs.request("digits", step=Step(options={"seed": 7}))
    assert place.claimed().seed == 7


def compete(url: str, worker: str, barrier: Any, results: Any) -> None:
    """One server: it makes runs of slots and ends what it gets."""
    db, clock = Database(url), Clock(START)
    place, done = Place(db, clock, lease_s=1e6), []
    barrier.wait(60)
    for _ in range(12):
        clock.forward(600)
        place.schedules.tick()
        place.schedules.backfill("nightly", START - 3_600_000, clock.at_ms, "both at once")
        while (file := place.claim(worker=worker)) is not None:
            done.append((file.logical_time, file.step))
            place.end(file)
        place.runs.tick()
    db.close()
    results.put(done)


def compete_over(url: str) -> None:
    db = Database(url)
    metadata.drop_all(db.engine)
    metadata.create_all(db.engine)
    Place(db, Clock(START)).put()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    servers = [context.Process(target=compete, args=(url, f"w{n}", barrier, results)) for n in range(2)]
    for server in servers:
        server.start()
    done = [*results.get(timeout=100), *results.get(timeout=100)]
    for server in servers:
        server.join(60)
        assert server.exitcode == 0
    last = Place(db, Clock(START + 12 * 600_000), lease_s=1e6)
    last.runs.tick()
    while (file := last.claim()) is not None:
        done.append((file.logical_time, file.step))
        last.end(file)
    ends = [run["state"] for run in last.runs.list()]
    db.close()
    assert len(done) == len(set(done)) == len(ends), "each step of each slot once"
    assert set(ends) == {"done"}
    assert len({slot for slot, _ in done}) == 4


def test_two_servers_on_one_sqlite_file_carry_out_each_step_of_each_slot_once(database_url: str) -> None:
    compete_over(database_url)


@pytest.mark.real_parts("initdb", "postgres")
def test_two_servers_on_one_postgresql_carry_out_each_step_of_each_slot_once(postgres_url: str) -> None:
    compete_over(postgres_url)


def test_a_nightly_schedule_is_caught_up_after_nights_without_a_server(tmp_path: Path) -> None:
    for catch_up, caught in ((CatchUp.SKIP, []), (CatchUp.LATEST, [4]), (CatchUp.ALL, [1, 2, 3, 4])):
        db, clock = Database(f"sqlite:///{tmp_path}/{catch_up}.db"), Clock(1_772_323_200_000)  # 2026-03-01T00:00Z
        metadata.create_all(db.engine)
        nightly = Schedule(name="nightly", model="digits", kind="cron", expression="0 3 * * *", catch_up=catch_up)
        Place(db, clock).schedules.put(nightly)
        clock.forward(3.5 * 86_400)  # no server until noon of the 4th
        back = Place(db, clock)
        told = back.schedules.preview(
            "nightly", down_from_ms=1_772_323_200_000, down_until_ms=clock.at_ms, count=1, catch_up=None
        )
        made = back.schedules.tick()
        slots = sorted(run["logical_time_ms"] for run in back.runs.list())
        assert [f"2026-03-0{day}T03:00:00Z" for day in caught] == told["caught_up"]
        assert len(made) == len(slots) == len(caught)
        assert told["missed"] == [f"2026-03-0{day}T03:00:00Z" for day in (1, 2, 3, 4)]
        assert told["next"] == ["2026-03-05T03:00:00Z"]
        assert back.schedules.tick() == []
        db.close()


def test_new_labels_make_a_run_once_there_are_enough_and_the_last_one_is_over(db: Database, clock: Clock) -> None:
    place, there = Place(db, clock, cool_down_s=60), 1_000
    schedules = ScheduleService(
        db, count_labels=lambda _, model: there if model == "digits" else 0, settings=RunSettings(), clock=clock
    )
    schedules.put(Schedule(name="fresh", model="digits", kind="labels", expression="500"))

    def look() -> list[str]:
        clock.forward(11)
        return schedules.tick()

    there += 499
    assert look() == [], "those that were there before do not count"
    there += 1
    assert len(look()) == 1
    there += 500
    assert look() == [], "one is under way"
    file = place.claimed()
    assert (file.trigger, file.reason) == ("labels", "schedule fresh: 500 new labels of digits")
    place.end(file, RunState.REFUSED)
    assert look() == [], "the model cools down"
    clock.forward(3600)
    assert len(look()) == 1


def test_a_backfill_trains_on_what_was_known_at_its_logical_time(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.put(Step(name="train"), Step(name="answer", kind=RunKind.BATCH, options={"job": JOB}))
    place.schedules.backfill("nightly", START - 3_600_000, START - 1, "the past")
    files = [place.claimed(), place.claimed()]
    until = {file.kind: file.labels_until for file in files}
    assert until == {RunKind.TRAIN: files[0].logical_time, RunKind.BATCH: None}
    for file in files:
        place.end(file)
    clock.forward(3600)
    place.schedules.tick()
    assert place.claimed(kinds=(RunKind.TRAIN,)).labels_until is None, "a slot of today knows all labels"


def test_a_run_that_was_handed_back_goes_on_with_the_data_that_it_began_with(db: Database) -> None:
    versions = iter([(4, 2), (9, 9)])
    runs = RunService(db, lake="/lake", lake_versions=lambda: next(versions), champion=lambda _: None)
    runs.request("digits")
    first = runs.claim("one")
    assert first is not None
    runs.hand_back(first.run, first.fence, "worker one stops")
    second = runs.claim("two")
    assert second is not None
    assert (second.samples_version, second.labels_version, second.attempt) == (4, 2, 1)


def test_a_schedule_that_makes_no_sense_any_more_keeps_no_other_from_its_runs(
    db: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(db, clock)
    place.put(Step())
    place.schedules.put(Schedule(name="broken", model="digits", kind="interval", expression="60"))
    with db.write() as connection:
        steps = [{"name": "a", "kind": "batch", "options": {"job": {"of": "an older form"}}}]
        connection.execute(sa.update(schedules).where(schedules.c.name == "broken").values(steps=steps))
    clock.forward(3600)
    assert len(place.schedules.tick()) == 1
    place.schedules.tick()
    assert caplog.text.count("makes no runs until it is put right or deleted") == 1
    shown = {one["name"]: one["wrong"] for one in place.schedules.list()}
    assert shown["nightly"] is None
    assert str(shown["broken"]).startswith("schedule broken: step 'a': batch job:")
    place.schedules.delete("broken")


def test_the_queue_shows_what_is_under_way_however_many_wait(db: Database, clock: Clock) -> None:
    place = Place(db, clock)
    place.put(Step())
    begun = place.schedules.start("nightly", "now")[0][0]
    assert place.claimed().run == begun
    clock.forward(1)
    place.schedules.backfill("nightly", START - 30 * 3_600_000, START, "the past")
    shown = place.runs.queue(limit=3)
    assert [run["state"] for run in shown] == ["running", "queued", "queued"]
    assert shown[0]["id"] == begun
    assert shown[1]["logical_time_ms"] < shown[2]["logical_time_ms"], "in the order in which they are taken"
    assert place.runs.list(ended=True) == []
