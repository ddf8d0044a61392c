"""The one seam to the database: writers take turns, and a mistake that would wait for itself is named at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fleet_server.database import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'shoal.db'}")
    with database.write() as connection:
        connection.execute(sa.text("CREATE TABLE count (number INTEGER)"))
        connection.execute(sa.text("INSERT INTO count VALUES (0)"))
    yield database
    database.close()


def test_a_write_inside_a_write_is_an_error_and_not_a_wait(db: Database) -> None:
    with pytest.raises(RuntimeError, match="inside another"), db.write(), db.write():
        raise AssertionError("not reached")
    with db.write() as connection:  # and the lock is free again
        connection.execute(sa.text("UPDATE count SET number = 1"))


def test_writers_of_many_threads_take_turns_and_lose_nothing(db: Database) -> None:
    def count() -> None:
        for _ in range(20):
            with db.write() as connection:
                found = connection.scalar(sa.text("SELECT number FROM count"))
                connection.execute(sa.text("UPDATE count SET number = :next"), {"next": found + 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as connection:
        assert connection.scalar(sa.text("SELECT number FROM count")) == 80
