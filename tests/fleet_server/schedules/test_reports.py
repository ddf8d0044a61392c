"""What runs write and measure is kept while they are under way, and bounded."""

from __future__ import annotations

import pytest

from edge_agent.contract.runs import RunProgress
from fleet_server.database import Database, metadata
from fleet_server.errors import NotFound
from fleet_server.schedules.reports import MOST_LOG_BYTES
from fleet_server.schedules.service import RunService, RunSettings
from tests.fleet_server.schedules.conftest import Clock


def service(db: Database, clock: Clock, **settings: int) -> RunService:
    return RunService(
        db,
        lake="/lake",
        lake_versions=lambda: (1, 1),
        champion=lambda _: None,
        clock=clock,
        settings=RunSettings(**settings),
    )


def say(runs: RunService, run: str, log: str = "", **metrics: float) -> None:
    runs.progress(run, RunProgress(fence=1, stage="fit", fraction=0.5, log=log, metrics=metrics))


def test_a_log_is_read_piece_by_piece(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = str(runs.request("digits"))
    runs.claim("w")
    assert runs.log(run) == {"text": "", "next": 0}
    say(runs, run, "epoch 1\n")
    first = runs.log(run)
    assert first["text"] == "epoch 1\n"
    say(runs, run, "epoch\0 2\n")
    assert runs.log(run, first["next"])["text"] == "epoch 2\n"
    assert runs.log(run)["text"] == "epoch 1\nepoch 2\n"
    with pytest.raises(NotFound):
        runs.log("nope")


def test_of_a_log_that_is_too_long_the_end_is_kept(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = str(runs.request("digits"))
    runs.claim("w")
    for at in range(40):
        say(runs, run, f"{at:04}" + "x" * 10_000 + "\n")
    text = runs.log(run)["text"]
    assert MOST_LOG_BYTES - 11_000 < len(text) <= MOST_LOG_BYTES
    assert "0039" in text
    assert "0000" not in text


def check_metrics(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = str(runs.request("digits"))
    runs.claim("w")
    say(runs, run, loss=1.0)
    say(runs, run, accuracy=0.5, diverged=float("nan"))
    assert runs.get(run)["metrics"] == {"loss": 1.0, "accuracy": 0.5}
    assert [point["metrics"] for point in runs.metrics(run)] == [{"loss": 1.0}, {"accuracy": 0.5}]
    for at in range(1_100):
        say(runs, run, loss=1.0 / (at + 1))
    points = runs.metrics(run)
    assert 500 <= len(points) <= 1_000
    assert points[0]["metrics"] == {"loss": 1.0}
    assert points[-1]["metrics"] == {"loss": 1.0 / 1_100}


def test_metrics_are_kept_over_time_the_newest_with_the_run(db: Database, clock: Clock) -> None:
    check_metrics(db, clock)


def check_words(db: Database, clock: Clock) -> None:
    runs = service(db, clock)
    run = str(runs.request("words"))
    runs.claim("w", ["words"])
    for at in range(5):
        words = {f"loss\0 {at} {each}": 1.0 for each in range(40)}
        runs.progress(run, RunProgress(fence=1, stage="f\0it", fraction=0.5, message="x\0" * 9_999, metrics=words))
    found = runs.get(run)
    assert found["stage"] == "fit"
    assert set(found["message"]) == {"x"}
    assert len(found["message"]) == 2_000
    assert len(found["metrics"]) == 64
    assert "loss 4 39" in found["metrics"]


def test_what_a_run_says_of_itself_is_bounded_and_has_no_zero_bytes(db: Database, clock: Clock) -> None:
    check_words(db, clock)


@pytest.mark.real_parts("initdb", "postgres")
def test_on_postgresql_too(postgres_url: str, clock: Clock) -> None:
    db = Database(postgres_url)
    metadata.create_all(db.engine)
    check_metrics(db, clock)
    check_words(db, clock)
    runs = service(db, clock)
    run = str(runs.request("letters"))
    runs.claim("w")
    say(runs, run, "nul \0 and \ufffd\n")
    assert runs.log(run)["text"] == "nul  and \ufffd\n"
    db.close()


def test_logs_of_old_runs_go_their_rows_stay(db: Database, clock: Clock) -> None:
    runs = service(db, clock, logs_kept=1)
    kept = []
    for model in ("digits", "letters"):
        run = str(runs.request(model))
        runs.claim("w", [model])
        say(runs, run, "words\n", loss=1.0)
        kept.append(run)
        clock.forward(1)
    assert runs.prune() == 2
    assert [runs.log(run)["text"] for run in kept] == ["", "words\n"]
