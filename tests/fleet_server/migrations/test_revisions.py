"""The revisions make exactly the tables that the features declare."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fleet_server.database import Database
from fleet_server.migrate import SCRIPTS, VERSION_TABLE, upgrade
from tests.fleet_server.migrations.revisions import all_tables, structure


def test_an_upgraded_empty_database_has_the_tables_that_are_declared(db: Database) -> None:
    upgrade(db)
    tables = all_tables()
    with db.read() as connection:
        options = {"version_table": VERSION_TABLE, "target_metadata": tables, "render_as_batch": True}
        context = MigrationContext.configure(connection, opts=options)
        missing = produce_migrations(context, tables).upgrade_ops
        assert missing is not None
        code = render_python_code(missing, render_as_batch=True, migration_context=context)
        assert compare_metadata(context, tables) == [], f"the newest revision lacks:\n{code}"


def test_it_has_the_same_types_defaults_names_of_keys_and_conditions_of_indexes(
    db: Database, declared: Database
) -> None:
    upgrade(db)
    made, wanted = structure(db), structure(declared)
    assert made.keys() == wanted.keys()
    for table, parts in wanted.items():
        assert made[table] == parts, table


def test_every_key_and_index_is_named_so_that_a_later_revision_can_change_it(db: Database) -> None:
    upgrade(db)
    for table, parts in structure(db).items():
        assert parts["primary key"]["name"] == f"pk_{table}"
        for kind, prefix in (("foreign keys", "fk_"), ("unique", "uq_"), ("indexes", ("ix_", "uq_"))):
            assert all(name is not None and name.startswith(prefix) for name in parts[kind]), (table, parts[kind])


def test_revisions_are_one_chain_numbered_in_order_and_each_says_what_it_is() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    chain = [*ScriptDirectory.from_config(config).walk_revisions()][::-1]
    files = sorted((SCRIPTS / "versions").glob("*.py"))
    assert [one.revision for one in chain] == [f"{number:04}" for number in range(1, len(files) + 1)]
    for one, file, before in zip(chain, files, [None, *chain], strict=False):
        assert file.name.startswith(f"{one.revision}_")
        assert one.down_revision == (before.revision if before is not None else None)
        assert one.doc.endswith(".")
