from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.trainer.batch.jobs import MIDNIGHT, changed, delta_rows, expected, images, job, run, table, write
from trainer.batch.batch import Outcome
from trainer.batch.errors import BatchOvertaken, OutputRefused
from trainer.batch.storage import Storage

TUESDAY = "2026-11-24T00:00:00Z"


def outputs(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "delta": {"kind": "delta", "path": str(folder / "out")},
        "parquet": {"kind": "parquet", "path": str(folder / "out")},
        "sql": {"kind": "sql", "url": f"sqlite:///{folder / 'out.db'}", "table": "answers"},
    }


def rows_of(kind: str, folder: Path, name: str = "") -> list[dict[str, Any]]:
    if kind == "delta":
        return delta_rows(folder / f"out{name}")
    if kind == "parquet":
        found = ds.dataset(folder / f"out{name}", format="parquet").to_table().to_pylist()
        return sorted(found, key=lambda row: str(row["key"]))
    with sqlite3.connect(folder / "out.db") as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f"SELECT * FROM answers{name} ORDER BY key")]  # noqa: S608
    connection.close()
    return found


@pytest.mark.parametrize("kind", ["delta", "parquet", "sql"])
def test_a_batch_is_in_its_table_once_and_can_be_replaced(package: Package, tmp_path: Path, kind: str) -> None:
    pixels = images(300)
    pixels[9, 0] = 4.0
    write(tmp_path / "in", "a.parquet", table([f"{at:03d}" for at in range(300)], pixels))
    some = job(package, tmp_path, output=outputs(tmp_path)[kind], outputs=["probabilities"])
    run(some)
    assert run(some).fresh is False
    rows = rows_of(kind, tmp_path)
    good = [digit for at, digit in enumerate(expected(pixels)) if at != 9]
    assert [row["prediction"] for row in rows] == good
    assert {row["logical_time"] for row in rows} == {MIDNIGHT}
    assert [row["key"] for row in rows_of(kind, tmp_path, "_rejected")] == ["009"]

    other = make_package(tmp_path / "other", version="2", seed=5)
    again = changed(some, model={"package": str(other.folder)}, replace=True)
    outcome = run(again, run="run-2")
    assert outcome.record is not None
    assert (outcome.record.number, outcome.record.replaces) == (2, 1)
    rows = rows_of(kind, tmp_path)
    assert len(rows) == 299
    assert {row["package"] for row in rows} == {other.digest}
    assert len(rows_of(kind, tmp_path, "_rejected")) == 1

    assert run(again, run="run-2").fresh is False
    third = run(again, run="run-3").record
    assert third is not None
    assert (third.number, third.replaces, len(rows_of(kind, tmp_path))) == (3, 2, 299)


@pytest.mark.parametrize("kind", ["delta", "parquet", "sql"])
def test_of_two_runs_at_once_one_commits_and_the_other_is_told(package: Package, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "in", "a.parquet", table([f"{at:03d}" for at in range(200)], images(200)))
    some = job(package, tmp_path, output=outputs(tmp_path)[kind])
    outcomes: list[Outcome | Exception] = []

    def one(name: str) -> None:
        try:
            outcomes.append(run(some, run=name, work=tmp_path / name))
        except (BatchOvertaken, OutputRefused) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one, args=(f"run-{at}",)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(found, Outcome) and found.fresh for found in outcomes) == 1, outcomes
    assert len(rows_of(kind, tmp_path)) == 200


@pytest.mark.parametrize("kind", ["delta", "parquet", "sql"])
def test_answers_with_other_columns_are_refused_before_any_is_computed(
    package: Package, tmp_path: Path, kind: str
) -> None:
    write(tmp_path / "in", "a.parquet", table(["a"], images(1)))
    some = job(package, tmp_path, output=outputs(tmp_path)[kind])
    run(some)
    write(tmp_path / "in", "b.parquet", table(["b"], images(1)))
    with pytest.raises(OutputRefused, match="output_probabilities"):
        run(changed(some, outputs=["probabilities"]), logical_time=TUESDAY)
    assert len(rows_of(kind, tmp_path)) == 1


def test_the_ledger_outlives_a_clean_up_of_the_tables_log(package: Package, tmp_path: Path) -> None:
    some = job(package, tmp_path)
    for day in range(1, 4):
        write(tmp_path / "in", f"{day}.parquet", table([str(day)], images(1)))
        run(some, logical_time=f"2026-11-0{day}T00:00:00Z")
    answers = DeltaTable(str(tmp_path / "out"))
    answers.create_checkpoint()
    for file in (tmp_path / "out" / "_delta_log").glob("*.json"):
        if int(file.stem) < answers.version():
            file.unlink()
    assert run(some, logical_time="2026-11-02T00:00:00Z").fresh is False
    assert run(some, logical_time="2026-11-05T00:00:00Z").record is None
    answers = DeltaTable(str(tmp_path / "out"))
    answers.optimize.compact()
    answers.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    write(tmp_path / "in", "9.parquet", table(["9"], images(1)))
    last = run(some, logical_time="2026-11-09T00:00:00Z")
    assert last.record is not None
    assert (last.record.number, last.record.rows) == (4, 1)
    assert [row["key"] for row in delta_rows(tmp_path / "out")] == ["1", "2", "3", "9"]


def test_what_others_write_into_meanwhile_is_removed_or_left_but_no_error(tmp_path: Path) -> None:
    storage, ended = Storage(str(tmp_path)), threading.Event()

    def write_on() -> None:
        number = 0
        while not ended.is_set():
            # Also where the folder goes between Python's attempt to make it and its look whether it is there.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                (tmp_path / "staged").mkdir(exist_ok=True)
                (tmp_path / "staged" / str(number := number + 1)).touch()

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for _ in range(200):
            storage.remove("staged")
    finally:
        ended.set()
        writer.join()
    storage.remove("staged")
    assert not (tmp_path / "staged").exists()


def test_two_attempts_may_write_one_mark_at_once_and_readers_find_it_whole(tmp_path: Path) -> None:
    storage, data = Storage(str(tmp_path)), b"the same mark" * 1000
    storage.put("folder/mark", data)
    found: list[bytes | None] = []
    errors: list[BaseException] = []

    def write_on() -> None:
        try:
            for _ in range(100):
                storage.put("folder/mark", data)
                found.append(storage.read("folder/mark"))
        except BaseException as error:
            errors.append(error)
            raise

    writers = [threading.Thread(target=write_on) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert set(found) == {data}
    assert storage.names("folder") == ["mark"]


def test_a_folder_that_another_attempt_makes_this_moment_is_empty_and_no_error(tmp_path: Path) -> None:
    storage, folder = Storage(str(tmp_path)), str(tmp_path / "staged")
    come_and_go = f"import os\nfor _ in range(1_000):\n    os.mkdir({folder!r})\n    os.rmdir({folder!r})"
    with subprocess.Popen([sys.executable, "-c", come_and_go]) as other:
        while other.poll() is None:  # Arrow made an error of some hundred of these listings
            assert storage.names("staged") == []
