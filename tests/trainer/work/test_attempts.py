"""Runs are carried out once, whoever is killed: real workers as processes, a real server over HTTP, scripted runs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from fastapi import FastAPI

from edge_agent.contract.runs import RunKind
from fleet_server.database import Database, metadata
from fleet_server.http_errors import install
from fleet_server.schedules.graph import Resources, Step
from fleet_server.schedules.routes import routes
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService, RunSettings
from fleet_server.schedules.slots import Schedule
from tests.fakes.served_app import served
from tests.trainer.work.worker_process import worker
from trainer.server_client import ServerClient
from trainer.work.room import Capacity


class Place:
    """A server with runs, and recipes for workers."""

    def __init__(self, url: str, db: Database, runs: RunService, recipes: Path, folder: Path) -> None:
        self.url, self.db, self.runs, self.recipes, self.folder = url, db, runs, recipes, folder
        self.client = ServerClient(url, "secret")
        self.trace = folder / "trace"
        self._processes: list[subprocess.Popen[bytes]] = []

    def ask(self, model: str = "one", *, step: Step | None = None, **script: Any) -> str:
        """A run that does what ``script`` says."""
        options = {"script": script | {"trace": str(self.trace)}}
        run = self.runs.request(model, step=msgspec.structs.replace(step or Step(), options=options))
        assert run is not None
        return run

    def start(self, name: str = "work") -> subprocess.Popen[bytes]:
        """A worker as a process."""
        command = [sys.executable, "-m", "tests.trainer.work.worker_process", self.url, str(self.recipes)]
        process = subprocess.Popen([*command, str(self.folder / name)])
        self._processes.append(process)
        return process

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, with patience."""
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.05)

    def ended(self, run: str) -> dict[str, Any]:
        """The run once it has ended."""
        self.until(lambda: self.runs.get(run)["ended_at_ms"] is not None, f"run {run} did not end")
        return self.runs.get(run)

    def pids(self) -> list[int]:
        """The processes of runs that there were."""
        return [int(line.split()[0]) for line in self.trace.read_text().splitlines()] if self.trace.exists() else []

    def close(self) -> None:
        """End what was begun."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.client.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    recipes = tmp_path / "recipes"
    for name in ("one", "two"):
        shutil.copytree(Path(__file__).parents[3] / "models" / "digits", recipes / name)
        settings = recipes / name / "model.toml"
        settings.write_text(settings.read_text().replace('name = "digits"', f'name = "{name}"', 1))
    db = Database(f"sqlite:///{tmp_path}/shoal.db")
    metadata.create_all(db.engine)
    runs = RunService(
        db,
        lake="/lake",
        lake_versions=lambda: (1, 1),
        champion=lambda _: None,
        settings=RunSettings(lease_s=600.0),  # nothing here waits for one to run out
    )
    app = FastAPI()
    install(app)
    anyone = dict.fromkeys(("require_trainer", "require_viewer", "require_admin"), lambda: None)
    app.include_router(routes(runs, ScheduleService(db), **anyone))
    with served(app) as client:
        one = Place(str(client.base_url), db, runs, recipes, tmp_path)
        yield one
        one.close()
    db.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_killed_workers_run_ends_with_it_and_resumes_from_its_checkpoint(place: Place) -> None:
    run = place.ask(epochs=4, epoch_s=0.4, child=True)
    process = place.start()
    place.until(lambda: place.runs.get(run)["message"] == "epoch 3 of 4", "it did not learn")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = place.pids()
    place.until(lambda: gone(first), "the run has outlived its worker")
    child = int(place.trace.with_suffix(".child").read_text())
    place.until(lambda: gone(child), "what the run had started has outlived it")
    assert place.runs.get(run)["state"] == "running", "nobody has noticed yet"
    place.start()
    ended = place.ended(run)
    assert ended["state"] == "done"
    began = int(ended["reasons"][0].split()[2].rstrip(","))
    assert 1 <= began <= 3, "it went on where it was"
    assert ended["attempts"] == 2
    assert len(place.pids()) == 2


def test_a_worker_that_is_told_to_stop_hands_its_run_to_another(place: Place) -> None:
    run = place.ask(epochs=3, epoch_s=0.5)
    stop = threading.Event()
    first = worker(place.client, place.recipes, place.folder / "first")
    thread = threading.Thread(target=first.work, args=(stop,))
    thread.start()
    place.until(lambda: bool(place.pids()), "it did not begin")
    stop.set()
    thread.join(60)
    assert place.runs.get(run)["state"] == "queued"
    assert worker(place.client, place.recipes, place.folder / "second").once(threading.Event()) is not None
    assert place.runs.get(run)["attempts"] == 1
    assert place.runs.get(run)["state"] == "done"


def test_log_and_metrics_reach_the_server_whole(place: Place) -> None:
    run = place.ask(epochs=3)
    worker(place.client, place.recipes, place.folder / "work").once(threading.Event())
    text = place.runs.log(run)["text"]
    assert [line for line in text.splitlines() if line.startswith("learning")] == [
        "learning 1",
        "learning 2",
        "learning 3",
    ]
    assert "fit 33%: epoch 2 of 3" in text
    assert place.runs.get(run)["metrics"] == {"loss": 1 / 3}


def test_a_run_that_takes_longer_than_it_may_is_ended_and_tried_again(place: Place) -> None:
    run = place.ask(step=Step(timeout_s=0.8, retries=1, backoff_s=0), epochs=2, epoch_s=1.2)
    ours = worker(place.client, place.recipes, place.folder / "work")
    for _ in range(2):
        result = ours.once(threading.Event())
        assert result is not None
        assert result.retry
        assert result.reasons[-1] == "ended after 0.8 s, the limit of a run"
    ended = place.runs.get(run)
    assert (ended["state"], ended["failures"]) == ("failed", 1)


@pytest.mark.parametrize(("status", "retry"), [(1, True), (2, False), (3, False), (6, True)])
def test_what_would_fail_again_is_not_tried_again(place: Place, status: int, retry: bool) -> None:
    place.ask(exit=status)
    result = worker(place.client, place.recipes, place.folder / "work").once(threading.Event())
    assert result is not None
    assert result.retry is retry
    assert result.reasons[0] == f"the run's process ended with status {status}"


def test_two_runs_at_once_share_what_the_worker_has(place: Place) -> None:
    for model in ("one", "two"):
        place.ask(model, step=Step(resources=Resources(cpus=1, gpus=1)), epochs=2, epoch_s=0.4)
    place.ask("one", step=Step(kind=RunKind.UPKEEP, resources=Resources(cpus=2)))
    stop = threading.Event()
    capacity = Capacity(at_once=3, cpus=2, gpus=("0", "1"))
    ours = worker(place.client, place.recipes, place.folder / "work", capacity)
    thread = threading.Thread(target=ours.work, args=(stop,))
    thread.start()
    most = 0
    ids = [run["id"] for run in place.runs.list()]

    def all_ended() -> bool:
        nonlocal most
        states = [run["state"] for run in place.runs.list()]
        most = max(most, states.count("running"))
        return states.count("done") == len(ids)

    place.until(all_ended, "they did not end")
    stop.set()
    thread.join(60)
    assert most == 2, "the third had to wait for processors"
    gpus = [line.split()[2] for line in place.trace.read_text().splitlines() if not line.endswith(" ")]
    assert {"0", "1"} <= set(gpus)


def test_a_cancelled_run_is_ended_at_its_workers_next_heartbeat(place: Place) -> None:
    run = place.ask(epochs=100, epoch_s=0.5)
    process = place.start()
    place.until(lambda: bool(place.pids()), "it did not begin")
    place.runs.cancel(run, "no")
    place.until(lambda: gone(place.pids()[0]), "it goes on")
    assert place.runs.get(run)["state"] == "cancelled"
    assert process.poll() is None, "the worker goes on"


def test_a_worker_says_why_its_run_was_cancelled_and_warns_of_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trainer.work.worker")
    run = place.ask(epochs=100, epoch_s=0.5)
    one = worker(place.client, place.recipes, place.folder / "one")
    thread = threading.Thread(target=one.once, args=(threading.Event(),))
    thread.start()
    place.until(lambda: bool(place.pids()), "it did not begin")
    place.runs.cancel(run, "wrong labels (all)")
    thread.join(60)
    said = [record for record in caplog.records if record.name == "trainer.work.worker"]
    assert said[-1].getMessage() == f"run {run}: cancelled: wrong labels (all)"
    assert {record.levelno for record in said} == {logging.INFO}


def test_a_graph_goes_through_worker_and_server_step_by_step(place: Place) -> None:
    script = {"script": {"trace": str(place.trace)}}
    steps = (
        Step(name="tend", kind=RunKind.UPKEEP, options=script),
        Step(name="train", needs=("tend",), options={"script": {"state": "unchanged"}}),
        Step(name="after", kind=RunKind.UPKEEP, needs=("train",), options={"script": {"exit": 2}}),
        Step(name="last", needs=("after",), model="two"),
    )
    schedules = ScheduleService(place.db)
    schedules.put(Schedule(name="chain", model="one", kind="manual", expression="", steps=steps))
    runs, _ = schedules.start("chain", "a test")
    place.start()
    place.ended(runs[-1])
    assert {run["step"]: run["state"] for run in place.runs.list()} == {
        "tend": "done",
        "train": "unchanged",
        "after": "failed",
        "last": "skipped",
    }


def test_a_worker_whose_server_is_away_goes_on_and_reports_when_it_is_back(place: Place) -> None:
    run = place.ask(epochs=2, epoch_s=0.5)
    lock = place.db.write()
    thread = threading.Thread(
        target=worker(place.client, place.recipes, place.folder / "work").once, args=(threading.Event(),)
    )
    thread.start()
    place.until(lambda: bool(place.pids()), "it did not begin")
    with lock:  # no heartbeat gets through
        place.until(lambda: gone(place.pids()[0]), "it does not go on")
    thread.join(60)
    assert place.runs.get(run)["state"] == "done"
    assert place.runs.get(run)["attempts"] == 1


def test_a_second_worker_in_the_same_folder_has_a_name_of_its_own(place: Place) -> None:
    first = worker(place.client, place.recipes, place.folder / "work")
    second = worker(place.client, place.recipes, place.folder / "work")
    assert first._folders.worker != second._folders.worker
    assert second._folders.worker.endswith(f":{os.getpid()}")
    name = first._folders.worker
    del first
    assert worker(place.client, place.recipes, place.folder / "work")._folders.worker == name
