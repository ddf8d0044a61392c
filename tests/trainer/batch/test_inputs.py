from __future__ import annotations

import csv
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from numpy.typing import NDArray

from edge_agent.contract.lake import SAMPLES
from edge_agent.contract.tensors import Tensor
from edge_agent.runtime.package import Package
from tests.trainer.batch.jobs import changed, delta_rows, expected, images, job, run, table
from trainer.batch.errors import InputUnreadable
from trainer.data.lake import append

TUESDAY = "2026-11-24T00:00:00Z"
WEDNESDAY = "2026-11-25T00:00:00Z"
PIXELS = [f"p{at}" for at in range(64)]


def answered(folder: Path) -> dict[str, str]:
    return {row["key"]: row["prediction"] for row in delta_rows(folder / "out")}


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def database(path: Path, pixels: NDArray[np.float32], *, first: int = 0) -> None:
    with sqlite3.connect(path) as connection:
        columns = ", ".join(f"{name} REAL" for name in PIXELS)
        connection.execute(f"CREATE TABLE IF NOT EXISTS scans (id TEXT, seen INTEGER, {columns})")
        rows = [(f"{first + at:03d}", first + at, *row) for at, row in enumerate(pixels.tolist())]
        connection.executemany(f"INSERT INTO scans VALUES ({', '.join('?' * 66)})", rows)  # noqa: S608
    connection.close()


def test_csv_files_are_read_with_text_keys_and_one_bad_cell_costs_one_row(package: Package, tmp_path: Path) -> None:
    pixels = images(30)
    lines = [["id", *PIXELS], *([f"{at:04d}", *row] for at, row in enumerate(pixels.tolist()))]
    lines[4][9] = "n.a."
    lines[7] = lines[7][:20]
    lines[9][3] = ""
    write_csv(tmp_path / "in" / "scans.csv", lines)
    some = job(package, tmp_path, input={"kind": "csv", "path": str(tmp_path / "in")}, columns={"image": PIXELS})
    outcome = run(some)
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (27, 3)
    found = answered(tmp_path)
    assert {key: found[key] for key in ("0000", "0029")} == {"0000": expected(pixels)[0], "0029": expected(pixels)[29]}
    aside = {row["row"]: row["reason"] for row in delta_rows(tmp_path / "out_rejected")}
    assert aside[3] == "input 'image': datatype: 'n.a.' is no FP32"
    assert aside[6] == "the line has 20 cells, the header 65"
    assert "missing" in aside[7]  # lines of the wrong length are not counted
    assert run(some, logical_time=TUESDAY).record is None
    assert not list((tmp_path / "out" / "_shoal" / "nightly" / "spools").glob("*/*.parquet"))


def test_lines_of_the_wrong_length_are_set_aside_together_under_their_own_numbers(
    package: Package, tmp_path: Path
) -> None:
    lines = [["id", *PIXELS], *([f"{at:04d}", *row] for at, row in enumerate(images(40).tolist()))]
    lines[3:] = [line[: 64 - at % 2] if at % 3 else line for at, line in enumerate(lines[3:])]
    write_csv(tmp_path / "in" / "scans.csv", lines)
    source = {"kind": "csv", "path": str(tmp_path / "in")}
    some = job(package, tmp_path, input=source, columns={"image": PIXELS}, max_rejected=0.9)
    outcome = run(some)
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (15, 25)
    aside = {row["row"]: row["reason"] for row in delta_rows(tmp_path / "out_rejected")}
    assert sorted(aside) == [2 + at for at in range(38) if at % 3]
    assert aside[3] == "the line has 63 cells, the header 65"
    assert len(DeltaTable(str(tmp_path / "out_rejected")).file_uris()) == 1

    write_csv(tmp_path / "in" / "scans.csv", [lines[0], *(line for line in lines[1:] if len(line) < 65)])
    with pytest.raises(InputUnreadable, match=r"no line of it is a row: the line has .* `delimiter`"):
        run(some, logical_time=TUESDAY)


def test_an_sql_query_answers_rows_above_the_last_watermark(package: Package, tmp_path: Path) -> None:
    pixels = images(50)
    database(tmp_path / "db", pixels[:40])
    source = {
        "kind": "sql",
        "url": f"sqlite:///{tmp_path / 'db'}",
        "query": "SELECT * FROM scans;",
        "watermark": "seen",
    }
    some = job(package, tmp_path, input=source, columns={"image": PIXELS})
    first = run(some)
    assert first.record is not None
    assert first.record.watermark == {"kind": "plain", "value": 39}
    assert run(some, logical_time=TUESDAY).record is None
    database(tmp_path / "db", pixels[40:], first=40)
    second = run(some, logical_time=WEDNESDAY)
    assert second.record is not None
    assert second.record.rows == 10
    assert list(answered(tmp_path).values()) == expected(pixels)


def test_a_watermark_that_changes_its_type_is_told(package: Package, tmp_path: Path) -> None:
    database(tmp_path / "scans.db", images(20))
    source = {"kind": "sql", "url": f"sqlite:///{tmp_path / 'scans.db'}", "query": "SELECT * FROM scans"}
    some = job(package, tmp_path, input=source | {"watermark": "seen"}, columns={"image": PIXELS})
    run(some)
    with sqlite3.connect(tmp_path / "scans.db") as connection:
        connection.execute("UPDATE scans SET seen = 'late' WHERE seen = 3")
    connection.close()
    with pytest.raises(InputUnreadable, match="'late', and 19 before, which cannot be compared"):
        run(some, logical_time=TUESDAY)


def test_a_query_that_takes_too_long_is_broken_off_and_may_be_tried_again(package: Package, tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT max(id) AS id FROM n"
    source = {"kind": "sql", "url": f"sqlite:///{tmp_path / 'db'}", "query": endless, "rows": "all", "timeout_s": 0.3}
    with pytest.raises(InputUnreadable, match=r"took longer than timeout_s = 0\.3") as caught:
        run(job(package, tmp_path, input=source))
    assert caught.value.retry


def test_a_wrong_query_is_told_without_the_password(package: Package, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WAREHOUSE", f"sqlite:///{tmp_path / 'db'}")
    source = {"kind": "sql", "url": "env:WAREHOUSE", "query": "SELECT * FROM nowhere", "rows": "all"}
    with pytest.raises(InputUnreadable, match="no such table: nowhere"):
        run(job(package, tmp_path, input=source))


def test_a_delta_table_gives_what_came_since_the_last_version(package: Package, tmp_path: Path) -> None:
    pixels = images(40)
    uri = str(tmp_path / "scans")
    write_deltalake(uri, table([str(at) for at in range(20)], pixels[:20], day=["mon"] * 20), partition_by=["day"])
    some = job(package, tmp_path, input={"kind": "delta", "path": uri}, keep=["day"])
    assert run(some).record is not None
    DeltaTable(uri).optimize.compact()
    assert run(some, logical_time=TUESDAY).record is None, "compaction brings no new rows"
    write_deltalake(uri, table([str(at) for at in range(20, 40)], pixels[20:], day=["tue"] * 20), mode="append")
    DeltaTable(uri).delete("id = '25'")  # rewrites the file of the others
    DeltaTable(uri).delete("id = '3'")  # rewrites a file that was answered already
    outcome = run(some, logical_time=WEDNESDAY)
    assert outcome.record is not None
    assert outcome.record.rows == 19
    found = answered(tmp_path)
    assert found == {str(at): digit for at, digit in enumerate(expected(pixels)) if at != 25}
    assert {row["day"] for row in delta_rows(tmp_path / "out")} == {"mon", "tue"}


def test_a_version_of_a_delta_table_can_be_named_and_a_missing_one_is_told(package: Package, tmp_path: Path) -> None:
    uri = str(tmp_path / "scans")
    write_deltalake(uri, table(["a"], images(1)))
    write_deltalake(uri, table(["b"], images(1)), mode="append")
    some = job(package, tmp_path, input={"kind": "delta", "path": uri, "version": 0})
    outcome = run(some)
    assert outcome.record is not None
    assert outcome.record.rows == 1
    again = changed(some, input={"kind": "delta", "path": uri, "version": 7})
    with pytest.raises(InputUnreadable, match="at version 7: cannot be read"):
        run(again, logical_time=TUESDAY)


def test_a_window_answers_the_rows_of_its_date_alone(package: Package, tmp_path: Path) -> None:
    uri, pixels = str(tmp_path / "scans"), images(4)
    moments = [f"2026-11-{day}T12:00:00Z" for day in (22, 23, 23, 24)]
    write_deltalake(uri, table(list("abcd"), pixels, at=moments))
    source = {"kind": "delta", "path": uri, "rows": "window", "time": "at", "window_s": 86_400}
    some = job(package, tmp_path, input=source)
    for logical_time in (WEDNESDAY, TUESDAY):  # a backfill goes to earlier dates after later ones
        run(some, logical_time=logical_time)
    rows = [(row["key"], row["logical_time"]) for row in delta_rows(tmp_path / "out")]
    assert rows == [("b", TUESDAY), ("c", TUESDAY), ("d", WEDNESDAY)]


def test_samples_of_the_lake_are_answered_by_device_and_request(package: Package, tmp_path: Path) -> None:
    pixels = images(12)
    rows = [
        {
            "request_id": f"r{at}",
            "device": "cam-1",
            "model": "other" if at == 11 else "digits",
            "day": "2026-11-22",
            "at_ms": at,
            "inputs": b"\x01" if at == 5 else msgspec.msgpack.encode({"image": Tensor.of(pixels[at : at + 1])}),
        }
        for at in range(12)
    ]
    append(str(tmp_path / "lake"), SAMPLES, rows)
    outcome = run(job(package, tmp_path, input={"kind": "lake", "path": str(tmp_path / "lake")}, key=[]))
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (10, 1)
    assert answered(tmp_path)["cam-1/r7"] == expected(pixels)[7]
    assert delta_rows(tmp_path / "out_rejected")[0]["key"] == "cam-1/r5"


def test_columns_of_other_types_become_what_the_model_takes(package: Package, tmp_path: Path) -> None:
    pixels = images(6).round(2)
    doubles = pa.table(
        {"id": list(range(6)), "image": pa.array(list(pixels.astype(float)), pa.list_(pa.float64(), 64))}
    )
    uri = str(tmp_path / "scans")
    write_deltalake(uri, doubles)
    assert run(job(package, tmp_path, input={"kind": "delta", "path": uri})).record is not None
    assert list(answered(tmp_path).values()) == expected(pixels)
