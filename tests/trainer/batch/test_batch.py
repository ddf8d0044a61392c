from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime.package import Package
from tests.trainer.batch.jobs import MIDNIGHT, delta_rows, expected, images, job, run, table, write
from trainer.batch.errors import InputUnreadable, OutputRefused, TooManyRejected


def test_every_row_of_a_parquet_folder_is_answered_into_a_delta_table(package: Package, tmp_path: Path) -> None:
    pixels = images(5000)
    write(tmp_path / "in", "a.parquet", table(list(range(3000)), pixels[:3000], site=["x"] * 3000))
    write(tmp_path / "in", "b.parquet", table(list(range(3000, 5000)), pixels[3000:], site=["y"] * 2000))
    outcome = run(job(package, tmp_path, outputs=["probabilities"], keep=["site"]))
    rows = {int(row["key"]): row for row in delta_rows(tmp_path / "out")}
    assert outcome.fresh
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected, outcome.record.number) == (5000, 0, 1)
    assert [rows[at]["prediction"] for at in range(5000)] == expected(pixels)
    assert rows[4000]["site"] == "y"
    assert rows[0]["package"] == package.digest
    assert rows[0]["logical_time"] == MIDNIGHT
    np.testing.assert_allclose(max(rows[17]["output_probabilities"]), rows[17]["confidence"], rtol=1e-6)


def test_the_same_logical_time_is_answered_once(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(list(range(50)), images(50)))
    some = job(package, tmp_path)
    first, again = run(some), run(some, run="run-2")
    assert (first.fresh, again.fresh) == (True, False)
    assert again.record == first.record
    assert len(delta_rows(tmp_path / "out")) == 50


def test_a_later_run_answers_only_files_that_are_new(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(list(range(50)), images(50)))
    some = job(package, tmp_path)
    run(some)
    nothing = run(some, logical_time="2026-11-24T00:00:00Z")
    assert nothing.record is None
    assert nothing.reason == "no rows to answer since batch 1"
    write(tmp_path / "in", "b.parquet", table(list(range(50, 80)), images(30, 8)))
    later = run(some, logical_time="2026-11-25")
    assert later.record is not None
    assert (later.record.rows, later.record.number, later.record.logical_time) == (30, 2, "2026-11-25T00:00:00Z")
    assert sorted(int(row["key"]) for row in delta_rows(tmp_path / "out")) == list(range(80))


def test_rows_that_break_the_contract_are_set_aside_with_the_reason(package: Package, tmp_path: Path) -> None:
    pixels = images(100)
    pixels[3, 5] = 7.0
    pixels[41, 0] = np.nan
    rows = [list(row) for row in pixels]
    rows[60] = rows[60][:63]
    rows[61] = None  # type: ignore[call-overload]
    ids: list[int | None] = list(range(100))
    ids[70] = None
    import pyarrow as pa

    found = pa.table({"id": pa.array(ids), "image": pa.array(rows, pa.list_(pa.float32()))})
    write(tmp_path / "in", "a.parquet", found)
    outcome = run(job(package, tmp_path))
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (95, 5)
    aside = {row["row"]: row for row in delta_rows(tmp_path / "out_rejected")}
    assert aside[3]["reason"] == "input 'image': range: 7.0 is above the maximum 1.0" or "range" in aside[3]["reason"]
    assert "missing" in aside[41]["reason"]
    assert aside[60]["reason"] == "input 'image': shape: expected 64 values, got 63"
    assert aside[61]["reason"] == "input 'image': missing: the cell is null"
    assert (aside[70]["reason"], aside[70]["key"]) == ("key: column 'id' is missing", None)
    assert aside[3]["key"] == "3"
    assert aside[3]["source"].endswith("a.parquet")
    keys = {int(row["key"]): row["prediction"] for row in delta_rows(tmp_path / "out")}
    good = [at for at in range(100) if at not in {3, 41, 60, 61, 70}]
    assert [keys[at] for at in good] == [expected(pixels)[at] for at in good]


def test_another_input_than_the_model_takes_commits_nothing(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(list(range(50)), images(50) + 5))
    with pytest.raises(TooManyRejected, match="50 of 50 rows break the contract of 'digits' version 1"):
        run(job(package, tmp_path))
    assert not (tmp_path / "out" / "_delta_log").exists()


def test_a_missing_column_is_named_with_those_there_are(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table([1], images(1)).rename_columns(["id", "pixels"]))
    with pytest.raises(InputUnreadable, match="has no column 'image'; it has: id, pixels"):
        run(job(package, tmp_path))


def test_a_table_of_another_job_is_not_written_to(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table([1], images(1)))
    run(job(package, tmp_path))
    with pytest.raises(OutputRefused, match="holds the answers of job 'nightly'"):
        run(job(package, tmp_path, name="weekly"))
