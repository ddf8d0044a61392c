"""Batches: the same for any number of processes, from memory and from disk."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.data.row_store import RowStore, prune_stores, write_store
from trainer.data.streaming import Batch, MemoryRows, RowSource, StoredRows
from trainer.errors import DatasetError

_ROWS = 20_011
_KEYS = [f"cam/{at}" for at in range(_ROWS)]


@pytest.fixture(scope="module")
def inputs() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    names = np.empty((_ROWS, 1), dtype=object)
    names[:, 0] = [f"row {at}".encode() for at in range(_ROWS)]
    return {
        "image": rng.random((_ROWS, 1, 4, 4), dtype=np.float32),
        "number": np.arange(_ROWS, dtype=np.int64),
        "flags": rng.random((_ROWS, 3)) < 0.5,
        "half": rng.random((_ROWS, 2)).astype(np.float16),
        "name": names,
    }


@pytest.fixture(scope="module")
def targets() -> NDArray[np.int64]:
    return np.arange(_ROWS, dtype=np.int64) * 10 // _ROWS  # in order: the worst for a shuffle in windows


@pytest.fixture(scope="module")
def store(
    inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64], tmp_path_factory: pytest.TempPathFactory
) -> RowStore:
    return stored(tmp_path_factory.mktemp("rows") / "all", inputs, targets)


def stored(folder: Path, inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64]) -> RowStore:
    shapes = {
        name: ("object" if array.dtype == object else array.dtype.str, array.shape[1:])
        for name, array in inputs.items()
    }
    return write_store(
        folder, _KEYS, targets, shapes, lambda rows: {name: array[rows] for name, array in inputs.items()}
    )


@pytest.fixture(params=["memory", "stored"])
def source(
    request: pytest.FixtureRequest, inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64], store: RowStore
) -> RowSource:
    weights = np.arange(_ROWS) / 7
    return MemoryRows(inputs, targets, weights) if request.param == "memory" else StoredRows(store, weights=weights)


def numbers(batches: list[Batch]) -> NDArray[np.int64]:
    return np.concatenate([batch[0]["number"] for batch in batches])


def test_each_pass_gives_every_row_once_with_its_own_target_and_weight(
    source: RowSource, inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64]
) -> None:
    batches = list(source.batches(size=64, seed=3, epoch=0))
    assert len(batches) == source.steps(64) == 313
    seen = numbers(batches)
    assert sorted(seen.tolist()) == list(range(_ROWS))
    for name, array in inputs.items():
        assert np.array_equal(np.concatenate([batch[0][name] for batch in batches]), array[seen]), name
    assert np.array_equal(np.concatenate([batch[1] for batch in batches]), targets[seen])
    assert np.array_equal(np.concatenate([batch[2] for batch in batches]), (seen / 7).astype(np.float32))


def test_no_batch_is_larger_than_asked_for_or_tiny(source: RowSource) -> None:
    sizes = {len(batch[1]) for batch in source.batches(size=64, seed=3)}
    assert sizes == {63, 64}


def test_an_epoch_is_shuffled_anew_and_a_seed_gives_the_same_order_again(source: RowSource) -> None:
    first, again = (numbers(list(source.batches(size=100, seed=3, epoch=0))) for _ in range(2))
    assert np.array_equal(first, again)
    for seed, epoch in ((3, 1), (4, 0)):
        assert not np.array_equal(first, numbers(list(source.batches(size=100, seed=seed, epoch=epoch))))
    wide, narrow = (numbers(list(source.batches(size=size, seed=None))) for size in (100, 64))
    assert np.array_equal(wide, narrow)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_any_number_of_processes_shares_out_the_same_global_batches(source: RowSource, world: int) -> None:
    alone = list(source.batches(size=64, seed=5, epoch=2))
    shares = [list(source.batches(size=64, seed=5, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert np.array_equal(numbers(parts), whole[0]["number"])
        assert np.array_equal(np.concatenate([part[2] for part in parts]), whole[2])


def test_batches_of_rows_that_lie_by_class_are_mixed(source: RowSource) -> None:
    classes = [len(set(batch[1].tolist())) for batch in source.batches(size=64, seed=1)]
    assert np.mean(classes) > 9.5


def test_a_part_of_a_store_is_had_with_its_own_weights(store: RowStore, targets: NDArray[np.int64]) -> None:
    mask = targets % 2 == 0
    rows = StoredRows(store, chosen=mask, weights=np.arange(_ROWS))
    batches = list(rows.batches(size=500, seed=1))
    assert len(rows) == mask.sum()
    seen = numbers(batches)
    assert set(seen.tolist()) == set(np.flatnonzero(mask).tolist())
    assert np.array_equal(np.concatenate([batch[2] for batch in batches]), seen.astype(np.float32))


def test_another_process_gets_the_same_batches(store: RowStore) -> None:
    rows = StoredRows(store)
    other = StoredRows(pickle.loads(pickle.dumps(RowStore.open(store.folder))))  # noqa: S301 - just made
    assert np.array_equal(numbers(list(rows.batches(size=64, seed=1))), numbers(list(other.batches(size=64, seed=1))))


def test_a_pass_that_is_left_early_leaves_nothing_running(source: RowSource) -> None:
    import threading

    before = threading.active_count()
    for _ in range(3):
        batches = source.batches(size=64, seed=1)
        next(iter(batches))
        batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_fewer_rows_than_processes_are_refused() -> None:
    few = MemoryRows({"x": np.zeros((3, 1))}, np.zeros(3, dtype=np.int64), np.ones(3))
    with pytest.raises(DatasetError, match="3 rows in batches of 64 cannot be shared out among 4 processes"):
        next(few.batches(size=64, seed=None, world=4))
    none = MemoryRows({"x": np.zeros((0, 1))}, np.zeros(0, dtype=np.int64), np.ones(0))
    with pytest.raises(DatasetError, match="no rows"):
        next(none.batches(size=64, seed=None))


def test_a_store_is_the_same_file_whatever_the_order_rows_come_in(
    inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64], store: RowStore, tmp_path: Path
) -> None:
    again = stored(tmp_path / "again", inputs, targets)
    assert (again.folder / "rows.arrow").read_bytes() == (store.folder / "rows.arrow").read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_store_is_told_and_written_anew(
    inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64], tmp_path: Path, damage: str
) -> None:
    found = stored(tmp_path / "rows", inputs, targets)
    rows = found.folder / "rows.arrow"
    if damage == "truncate":
        rows.write_bytes(rows.read_bytes()[: rows.stat().st_size // 2])
    elif damage == "remove":
        rows.unlink()
    else:
        (found.folder / "about.json").write_text("{")
    with pytest.raises(DatasetError, match="remove it"):
        RowStore.open(found.folder)
    assert len(list(StoredRows(stored(tmp_path / "rows", inputs, targets)).batches(size=_ROWS, seed=None))) == 1


def test_a_full_disk_is_said_and_leaves_no_half_store(
    inputs: dict[str, NDArray[Any]], targets: NDArray[np.int64], tmp_path: Path, full_disk: Callable[[], Any]
) -> None:
    with full_disk(), pytest.raises(DatasetError, match=r"MB of rows cannot be written: .*free some space"):
        stored(tmp_path / "rows", inputs, targets)
    assert list(tmp_path.iterdir()) == []


def test_of_old_stores_those_used_last_stay_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    now = time.time()
    for age in range(6):
        (tmp_path / f"s{age}").mkdir()
        (tmp_path / f"s{age}" / "about.json").write_text("{}")
        os.utime(tmp_path / f"s{age}", (now - age * 50_000,) * 2)
    left = {"decoding-a1": 90_000, "decoding-b2": 60, f"{'0f' * 20}-c3": 90_000, "somebody-elses": 90_000}
    for name, age in left.items():
        (tmp_path / f".{name}").mkdir()
        (tmp_path / f".{name}" / "rows.arrow").touch()
        for path in (tmp_path / f".{name}" / "rows.arrow", tmp_path / f".{name}"):
            os.utime(path, (now - age,) * 2)
    prune_stores(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".decoding-b2", ".somebody-elses", "s0", "s1"]
