"""Rows of SQL, Parquet, CSV and Delta into the lake: checked as a device would, all or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from edge_agent.contract.lake import LABELS, SAMPLES
from tests.trainer.conftest import NOW
from trainer.data.dataset import read_dataset
from trainer.data.import_table import Columns, import_table
from trainer.data.lake import import_base
from trainer.data.sources import RowsFrom
from trainer.errors import DatasetError
from trainer.recipe import Recipe

_ROWS = 300
_PIXELS = tuple(f"p{at}" for at in range(64))


def columns(*, wide: bool, key: str | None = "id") -> Columns:
    return Columns(tensors={"image": _PIXELS if wide else ("pixels",)}, label="digit", group="subject", key=key)


def table(*, wide: bool) -> pa.Table:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (_ROWS, 64)).astype(np.float64)
    found: dict[str, Any] = {
        "id": np.arange(_ROWS),
        "subject": [f"s{at // 3}" for at in range(_ROWS)],
        "digit": np.arange(_ROWS) % 10,
    }
    found |= dict(zip(_PIXELS, images.T, strict=True)) if wide else {"pixels": list(images)}
    return pa.table(found)


def source_of(kind: str, folder: Path) -> tuple[RowsFrom, Columns]:
    if kind == "parquet":
        pq.write_table(table(wide=False), folder / "rows.parquet")
        return RowsFrom.parse(f"parquet:{folder / 'rows.parquet'}"), columns(wide=False)
    if kind == "delta":
        write_deltalake(str(folder / "rows"), table(wide=False))
        write_deltalake(str(folder / "rows"), table(wide=False).slice(0, 1), mode="overwrite")
        return RowsFrom.parse(f"delta:{folder / 'rows'}@0"), columns(wide=False)
    if kind == "csv":
        pyarrow.csv.write_csv(table(wide=True), folder / "rows.csv")
        return RowsFrom.parse(f"csv:{folder / 'rows.csv'}"), columns(wide=True)
    return database(folder, table(wide=True)), columns(wide=True)


def database(folder: Path, rows: pa.Table) -> RowsFrom:
    with sqlite3.connect(folder / "rows.db") as connection:
        connection.execute(f"CREATE TABLE parts ({', '.join(rows.schema.names)})")
        marks = ", ".join("?" * rows.num_columns)
        cells = zip(*(column.to_pylist() for column in rows.columns), strict=True)
        connection.executemany(f"INSERT INTO parts VALUES ({marks})", cells)  # noqa: S608 - question marks alone
    connection.close()
    return RowsFrom.parse(f"sql:sqlite:///{folder / 'rows.db'}", query="SELECT * FROM parts ORDER BY id")


@pytest.mark.parametrize("kind", ["parquet", "csv", "sql", "delta"])
def test_rows_come_into_the_lake_whatever_they_come_from(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    source, which = source_of(kind, tmp_path)
    lake = str(tmp_path / "lake")
    done = import_table(recipe, lake, source, which, now=NOW)
    assert (done.rows, done.new, done.labelled, done.bad) == (_ROWS, _ROWS, _ROWS, 0)
    assert DeltaTable(f"{lake}/{SAMPLES}").version() == DeltaTable(f"{lake}/{LABELS}").version() == 0
    rows = read_dataset(recipe, lake).rows
    at = {request: number for number, request in enumerate(rows.requests)}
    first = at["digits-row-17"]
    assert rows.targets[first] == 7
    assert rows.groups[first] == "s5"
    expected = np.array([table(wide=True)[name][17].as_py() for name in _PIXELS], dtype=np.float32)
    assert np.array_equal(rows.inputs["image"][first].reshape(-1), expected)


def test_an_import_run_again_adds_nothing_and_takes_corrected_labels(recipe: Recipe, tmp_path: Path) -> None:
    source, which = source_of("parquet", tmp_path)
    lake = str(tmp_path / "lake")
    import_table(recipe, lake, source, which, now=NOW)
    again = import_table(recipe, lake, source, which, now=NOW.replace(day=2))
    assert (again.new, again.labelled) == (0, 0)
    assert DeltaTable(f"{lake}/{SAMPLES}").version() == 0
    mended = table(wide=False)
    mended = mended.set_column(2, "digit", pa.array([9, *mended["digit"].to_pylist()[1:]]))
    pq.write_table(mended, tmp_path / "rows.parquet")
    assert import_table(recipe, lake, source, which, now=NOW.replace(day=3)).labelled == 1
    rows = read_dataset(recipe, lake).rows
    assert rows.targets[list(rows.requests).index("digits-row-0")] == 9


def test_rows_without_a_key_are_known_by_their_content(recipe: Recipe, tmp_path: Path) -> None:
    source, _ = source_of("parquet", tmp_path)
    for new in (_ROWS, 0):
        done = import_table(recipe, str(tmp_path / "lake"), source, columns(wide=False, key=None), now=NOW)
        assert done.new == new


def spoiled(change: Callable[[dict[str, list[Any]]], None], folder: Path) -> RowsFrom:
    found = table(wide=False).to_pydict()
    change(found)
    pq.write_table(pa.table(found), folder / "rows.parquet")
    return RowsFrom.parse(f"parquet:{folder / 'rows.parquet'}")


def _spoil(name: str, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def change(found: dict[str, list[Any]]) -> None:
        found[name] = [*found[name][:5], value, *found[name][6:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_spoil("pixels", [99.0] * 64), "row 5: input 'image'.*range.*99"),
        (_spoil("pixels", [1.0] * 63), "row 5: input 'image': shape: expected 64 values, got 63"),
        (_spoil("pixels", None), "row 5: input 'image': missing: the cell is null"),
        (_spoil("digit", 11), "row 5: label '11' is no class; model.toml has: 0, 1"),
        (_spoil("digit", None), "row 5: label is missing"),
        (_spoil("id", 4), "row 5: key '4' was there before; a key names one row"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    recipe: Recipe, tmp_path: Path, change: Callable[[dict[str, list[Any]]], None], message: str
) -> None:
    source, lake = spoiled(change, tmp_path), tmp_path / "lake"
    with pytest.raises(DatasetError, match=f"(?s)1 of 300 rows cannot be imported; nothing was written.*{message}"):
        import_table(recipe, str(lake), source, columns(wide=False), now=NOW)
    assert not lake.exists()
    done = import_table(recipe, str(lake), source, columns(wide=False), now=NOW, skip_bad=True)
    assert (done.new, done.bad) == (_ROWS - 1, 1)


def test_all_bad_rows_are_counted_and_the_first_are_listed(recipe: Recipe, tmp_path: Path) -> None:
    def change(found: dict[str, list[Any]]) -> None:
        found["digit"] = [77] * 100 + found["digit"][100:]

    with pytest.raises(DatasetError) as found:
        import_table(recipe, str(tmp_path / "lake"), spoiled(change, tmp_path), columns(wide=False), now=NOW)
    assert "100 of 300 rows" in str(found.value)
    assert len(str(found.value).splitlines()) == 21


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"tensors": {"picture": ("pixels",)}}, "'digits' has no input picture; it has: image"),
        ({"label": "class"}, "has no column class; it has: id, subject, digit, pixels"),
        ({"tensors": {"image": ("id", "digit")}}, "input 'image' takes 64 values a row, the columns give 2"),
    ],
)
def test_columns_that_cannot_be_the_inputs_are_told(
    recipe: Recipe, tmp_path: Path, which: dict[str, Any], message: str
) -> None:
    source, _ = source_of("parquet", tmp_path)
    wanted = Columns(**({"tensors": {"image": ("pixels",)}, "label": "digit", "group": "subject"} | which))
    with pytest.raises(DatasetError, match=message):
        import_table(recipe, str(tmp_path / "lake"), source, wanted, now=NOW)


def test_a_query_that_takes_too_long_is_broken_off(recipe: Recipe, tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS id FROM n"
    source = RowsFrom.parse(f"sql:sqlite:///{tmp_path / 'empty.db'}", query=endless, timeout_s=0.5)
    with pytest.raises(DatasetError, match=r"took longer than timeout_s = 0\.5 and was broken off"):
        import_table(recipe, str(tmp_path / "lake"), source, columns(wide=False), now=NOW)
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("text", ["rows.parquet", "excel:rows.xls", "sql:sqlite:///x.db", "csv:"])
def test_a_source_that_is_none_says_how_one_is_written(text: str) -> None:
    with pytest.raises(DatasetError, match=r"write KIND:WHERE|needs a query"):
        RowsFrom.parse(text)


def test_a_password_is_never_shown() -> None:
    source = RowsFrom.parse("sql:postgresql+psycopg://ann:hush@db/x", query="SELECT 1 AS a")
    assert "hush" not in source.shown


def test_a_file_that_is_not_there_is_told(recipe: Recipe, tmp_path: Path) -> None:
    for kind in ("csv", "parquet", "delta"):
        with pytest.raises(DatasetError, match="cannot be read"):
            import_table(
                recipe, str(tmp_path / "lake"), RowsFrom.parse(f"{kind}:{tmp_path}/gone"), columns(wide=False), now=NOW
            )


def test_a_recipes_base_rows_and_a_tables_rows_live_beside_each_other(recipe: Recipe, tmp_path: Path) -> None:
    source, which = source_of("parquet", tmp_path)
    lake = str(tmp_path / "lake")
    import_table(recipe, lake, source, which, now=NOW)
    assert import_base(recipe, lake, now=NOW, replace=True).new == 701
    assert import_base(recipe, lake, now=NOW).new == 0
    assert len(read_dataset(recipe, lake).rows) == 701 + _ROWS
