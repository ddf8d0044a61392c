"""Requests that may still get a label, on disks that are slow, full or worn out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.errors import DeviceError, StorageNotWritable
from edge_agent.monitor.ids import Ids
from edge_agent.monitor.predictions import Predictions
from edge_agent.monitor.remembered import AnsweredRows, Remembered

LATER_MS = 1_000_000


def answered(request_id: str, prediction: int = 1, *, sampled: bool = True) -> AnsweredRows:
    """One request of one row."""
    return AnsweredRows(
        package="a" * 64,
        class_name=str,
        lifetime_ms=LATER_MS,
        ids=Ids([request_id], [0.0], 1),
        sizes=[],
        now=(0.0, 1),
        rows=1,
        found=Predictions(np.array([prediction]), np.array([0.5]), np.array([0.5])),
        asked={0: 0.1} if sampled else {},
    )


@pytest.fixture
def remembered(tmp_path: Path) -> Iterator[Remembered]:
    made = Remembered(tmp_path / "requests.db", recent=2, limit=100)
    yield made
    made.close()


def test_of_one_id_used_twice_the_later_request_counts(remembered: Remembered) -> None:
    remembered.add("digits", answered("r", 1))
    remembered.persist(0)
    remembered.add("digits", answered("r", 2))
    for _ in range(2):
        found = remembered.find("digits", "r", 0)
        assert found is not None
        assert found.prediction == "2"
        remembered.persist(0)


def test_what_is_sampled_is_known_as_such_in_memory_and_on_disk(tmp_path: Path) -> None:
    first = Remembered(tmp_path / "requests.db")
    first.add("digits", answered("sampled"))
    first.add("digits", answered("passed", sampled=False))
    told = [first.find("digits", name, 0) for name in ("sampled", "passed")]
    assert [found is not None and found.sampled for found in told] == [True, False]
    first.persist(0)
    first.close()
    again = Remembered(tmp_path / "requests.db")
    found = again.find("digits", "sampled", 0)
    assert found is not None
    assert found.sampled
    assert again.find("digits", "passed", 0) is None
    again.close()


def test_remembering_does_not_wait_for_a_disk_that_is_busy(remembered: Remembered) -> None:
    """The serving path calls it, on the event loop's own thread."""
    remembered.add("digits", answered("before"))
    with remembered._database_lock:  # as while a write to a slow card goes on
        writing = threading.Thread(target=remembered.persist, args=(0,))
        writing.start()
        remembered.add("digits", answered("meanwhile"))
        assert remembered.find("digits", "meanwhile", 0) is not None
    writing.join(30)
    remembered.persist(0)
    for name in ("x", "y"):  # push both out of the memory
        remembered.add("digits", answered(name, sampled=False))
    assert remembered.find("digits", "before", 0) is not None
    assert remembered.find("digits", "meanwhile", 0) is not None


def test_a_disk_that_refuses_for_long_does_not_fill_the_memory(remembered: Remembered) -> None:
    remembered._database.execute("PRAGMA query_only=ON")
    for number in range(150):
        remembered.add("digits", answered(str(number)))
    with pytest.raises(StorageNotWritable, match=r"requests\.db"):
        remembered.persist(0)
    assert len(remembered._unwritten) == 100
    remembered._database.execute("PRAGMA query_only=OFF")
    remembered.persist(0)
    assert remembered.find("digits", "49", 0) is None
    assert remembered.find("digits", "50", 0) is not None


def test_the_oldest_go_when_too_many_are_on_the_disk(remembered: Remembered) -> None:
    for number in range(100):
        remembered.add("digits", answered(str(number)))
    remembered.persist(0)
    remembered.add("digits", answered("last"))
    remembered.persist(0)
    assert remembered.find("digits", "last", 0) is not None
    (count,) = remembered._database.execute("SELECT count(*) FROM requests").fetchone()
    assert count == 100


def test_a_file_that_is_spoilt_while_the_agent_runs_is_replaced(remembered: Remembered, tmp_path: Path) -> None:
    for number in range(100):
        remembered.add("digits", answered(str(number)))
    remembered.persist(0)
    remembered._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / "requests.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)
    remembered._database.execute("PRAGMA shrink_memory")
    remembered.add("digits", answered("new"))
    with pytest.raises(DeviceError, match="damaged"):
        remembered.persist(0)
    remembered.persist(0)
    for name in ("x", "y"):
        remembered.add("digits", answered(name, sampled=False))
    assert remembered.find("digits", "new", 0) is not None
    assert len(list(tmp_path.glob("requests.db.damaged-*"))) == 1
