"""An upgrade is done whole or not at all, and takes no row away."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from edge_agent.contract.errors import ConfigurationError
from fleet_server.database import Database
from fleet_server.migrate import VERSION_TABLE, pending, upgrade
from tests.fleet_server.migrations.revisions import (
    FIRST,
    HEAD,
    NEXT,
    fleet_of_one,
    revision_of,
    rows,
    structure,
    with_next,
)

RENAME = """
    with op.batch_alter_table("devices") as devices:
        devices.alter_column("api", new_column_name="address")
        devices.add_column(sa.Column("site", sa.Text, nullable=False, server_default="here"))
    with op.batch_alter_table("runs") as runs:
        runs.alter_column("worker", type_=sa.String(64), existing_type=sa.Text, existing_nullable=False)
"""


def copies(db: Database) -> list[str]:
    """The copies beside an SQLite file, half ones too."""
    assert db.url.database is not None
    return sorted(path.name for path in Path(db.url.database).parent.glob("*.before-*")) + sorted(
        path.name for path in Path(db.url.database).parent.glob(".*.before-*")
    )


def test_an_empty_database_is_brought_to_the_newest_revision(db: Database) -> None:
    todo = pending(db)
    titles = [step.title for step in todo.steps]
    assert (todo.found, titles[0], len(titles)) == (None, "The tables of the first version.", int(HEAD))
    assert revision_of(db) is None
    assert upgrade(db) == todo
    assert revision_of(db) == todo.head


def test_a_second_start_changes_nothing(db: Database) -> None:
    upgrade(db)
    fleet_of_one(db)
    again = upgrade(db)
    assert (again.found, again.steps, again.needed, again.copy) == (again.head, (), False, None)
    assert not pending(db).needed
    assert rows(db, "devices") == 1


def test_an_older_database_keeps_its_rows_in_tables_that_others_refer_to(db: Database, tmp_path: Path) -> None:
    upgrade(db)
    fleet_of_one(db)
    before = structure(db)
    scripts = with_next(tmp_path, RENAME)
    todo = pending(db, scripts=scripts)
    assert (todo.found, todo.head, [step.title for step in todo.steps]) == (HEAD, NEXT, ["The next one."])
    done = upgrade(db, scripts=scripts)
    assert revision_of(db) == NEXT
    with db.read() as connection:
        device = connection.execute(sa.text("select name, address, site from devices")).one()
        assert tuple(device) == ("d0", "http", "here")
        assert connection.execute(sa.text("select device, release from desired_models")).one() == ("d0", 7)
    after = structure(db)
    assert after["runs"]["indexes"] == before["runs"]["indexes"]  # with their conditions
    assert after["desired_models"] == before["desired_models"]
    with pytest.raises(sa.exc.IntegrityError), db.write() as connection:  # foreign keys hold again
        connection.execute(sa.text("delete from devices"))
    assert not db.is_sqlite or (done.copy is not None and done.copy.name.endswith(f".db.before-{NEXT}"))


def test_a_copy_of_an_sqlite_file_is_kept_as_it_was_before(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/shoal.db")
    upgrade(db)
    assert copies(db) == []  # there was nothing to keep
    fleet_of_one(db)
    done = upgrade(db, scripts=with_next(tmp_path, RENAME))
    assert copies(db) == ["shoal.db.before-" + NEXT]
    assert done.copy is not None
    assert stat.S_IMODE(done.copy.stat().st_mode) == 0o600
    db.close()
    old = Database(f"sqlite:///{shutil.copy(done.copy, tmp_path / 'restored.db')}")
    assert (revision_of(old), rows(old, "devices"), rows(old, "desired_models")) == (HEAD, 1, 1)
    assert not upgrade(old).needed  # the server of before works with it
    old.close()


def test_a_step_that_fails_leaves_all_as_it_was_and_can_be_tried_again(db: Database, tmp_path: Path) -> None:
    upgrade(db)
    fleet_of_one(db)
    before = structure(db)
    scripts = with_next(tmp_path, RENAME + '    op.drop_column("devices", "nowhere")\n')
    with pytest.raises(
        ConfigurationError, match=f"could not be brought from {HEAD} to {NEXT}, and is as it was"
    ) as failed:
        upgrade(db, scripts=scripts)
    assert "\n" not in str(failed.value)
    assert (structure(db), revision_of(db), rows(db, "devices")) == (before, HEAD, 1)
    upgrade(db, scripts=with_next(tmp_path, RENAME))
    assert (revision_of(db), rows(db, "devices"), rows(db, "desired_models")) == (NEXT, 1, 1)


def test_a_kill_in_the_middle_leaves_all_as_it_was(db: Database, tmp_path: Path) -> None:
    upgrade(db)
    fleet_of_one(db)
    before = structure(db)
    scripts = with_next(tmp_path, RENAME + "    os.kill(os.getpid(), signal.SIGKILL)\n")
    program = (
        "import pathlib, sys; from fleet_server.database import Database; from fleet_server.migrate import upgrade; "
        "upgrade(Database(sys.argv[1]), scripts=pathlib.Path(sys.argv[2]))"
    )
    url = db.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", program, url, str(scripts)], check=False, timeout=60)
    assert killed.returncode == -9
    assert (structure(db), revision_of(db), rows(db, "devices")) == (before, HEAD, 1)
    upgrade(db, scripts=with_next(tmp_path, RENAME))
    assert (revision_of(db), rows(db, "devices"), rows(db, "desired_models")) == (NEXT, 1, 1)


def test_a_step_that_would_orphan_rows_is_refused(db: Database, tmp_path: Path) -> None:
    upgrade(db)
    fleet_of_one(db)
    with pytest.raises(ConfigurationError, match="desired_models"):
        upgrade(db, scripts=with_next(tmp_path, 'op.execute("delete from devices")'))
    assert (revision_of(db), rows(db, "devices")) == (HEAD, 1)


def test_a_revision_of_a_newer_server_is_refused(db: Database, tmp_path: Path) -> None:
    upgrade(db, scripts=with_next(tmp_path, RENAME))
    for look in (upgrade, pending):
        with pytest.raises(
            ConfigurationError, match=f"newer server: it is at revision {NEXT}, and this server knows 0001 to {HEAD}"
        ):
            look(db)
    assert revision_of(db) == NEXT


def test_tables_made_before_there_were_revisions_are_taken_over(unversioned: Database, tmp_path: Path) -> None:
    fleet_of_one(unversioned)
    assert pending(unversioned).adopts
    done = upgrade(unversioned, scripts=with_next(tmp_path, RENAME))
    assert (done.adopts, done.found, done.head) == (True, FIRST, NEXT)
    assert (revision_of(unversioned), rows(unversioned, "devices"), rows(unversioned, "desired_models")) == (NEXT, 1, 1)
    assert done.copy is None or done.copy.name.endswith(f".before-{NEXT}")


def test_tables_that_no_revision_made_are_left_alone(unversioned: Database) -> None:
    with unversioned.write() as connection:
        connection.execute(sa.text("alter table serving drop column seen_ms"))
    before = structure(unversioned)
    with pytest.raises(ConfigurationError, match="serving is not that of revision 0001"):
        upgrade(unversioned)
    assert (structure(unversioned), revision_of(unversioned)) == (before, None)


def test_tables_of_another_program_are_none_of_our_business(db: Database) -> None:
    with db.write() as connection:
        connection.execute(sa.text("create table alembic_version (version_num varchar(32) primary key)"))
        connection.execute(sa.text("insert into alembic_version values ('f5a4f2784254')"))
    assert upgrade(db).found is None
    assert rows(db, "alembic_version") == 1
    assert not pending(db).needed


def test_a_database_that_is_not_reached_is_named_without_its_password() -> None:
    db = Database("postgresql+psycopg://shoal:geheim@127.0.0.1:9/fleet")
    with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg://shoal:\*\*\*@127.0.0.1:9/fleet: ") as refused:
        upgrade(db)
    assert "geheim" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_name_with_a_percent_sign_is_no_riddle(tmp_path: Path) -> None:
    odd = tmp_path / "100%(here)s"
    odd.mkdir()
    db = Database(f"sqlite:///{tmp_path}/shoal.db")
    assert upgrade(db, scripts=with_next(odd, "pass")).head == NEXT
    db.close()


def test_a_file_that_another_process_writes_to_is_not_copied_half_way(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/shoal.db")
    upgrade(db)
    other = sqlite3.connect(tmp_path / "shoal.db", isolation_level=None)
    other.execute("PRAGMA busy_timeout=0")
    # The revision runs while the transaction of the copy is open: nobody else can begin to write.
    scripts = with_next(tmp_path, "pass")
    with db.restructure(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    assert upgrade(db, scripts=scripts).copy is not None
    db.close()


def test_what_lies_in_the_write_ahead_log_is_in_the_copy(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/shoal.db")
    upgrade(db)
    reader = db.engine.connect()
    reader.execute(sa.text(f"select 1 from {VERSION_TABLE}"))  # noqa: S608  keeps the log from being emptied
    fleet_of_one(db)
    assert (tmp_path / "shoal.db-wal").stat().st_size > 0
    done = upgrade(db, scripts=with_next(tmp_path, "pass"))
    reader.close()
    db.close()
    assert done.copy is not None
    old = Database(f"sqlite:///{done.copy}")
    assert rows(old, "devices") == 1
    old.close()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
@pytest.mark.parametrize(
    ("room", "left"),
    [
        pytest.param(0.5, ["shoal.db"], id="for the copy"),
        pytest.param(1.2, ["shoal.db", "shoal.db.before-" + NEXT], id="for the upgrade"),
    ],
)
def test_a_full_disk_leaves_all_as_it_was(
    room: float, left: list[str], tmp_path: Path, on_a_small_disk: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = on_a_small_disk(with_next(tmp_path, RENAME), room=room)
    assert done.stdout.splitlines() == ["StorageFull", HEAD, "1", str(left)], done.stderr
