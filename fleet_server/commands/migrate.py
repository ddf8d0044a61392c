"""``shoal server migrate``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fleet_server.migrate import Upgrade


@click.command("migrate")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; the server may be running.")
def migrate_command(data: Path | None, config_path: Path | None, dry_run: bool) -> None:
    """Bring the database to what this version of the server works with.

    The server does the same at its start; this does it without one, or only looks. All of it is done or nothing. Of an
    SQLite database a copy stays beside it: DATA/shoal.db.before-REVISION.
    """
    from fleet_server.config import read_config
    from fleet_server.data_folder import DataFolder
    from fleet_server.database import Database
    from fleet_server.migrate import pending, upgrade

    config = read_config(config_path, {("data",): str(data) if data is not None else None})
    folder = DataFolder(Path(config.data))
    if not config.database and not folder.database.exists():
        click.echo(f"{folder.database}: not there yet; the server makes it at its first start")
        return
    with contextlib.ExitStack() as stack:
        if not dry_run:
            folder.prepare()
            stack.callback(folder.lock())
        db = Database(config.database or f"sqlite:///{folder.database.resolve()}")
        stack.callback(db.close)
        _show(db.name, pending(db) if dry_run else upgrade(db), done=not dry_run)


def _show(name: str, todo: Upgrade, *, done: bool) -> None:
    if not todo.needed:
        click.echo(f"{name}: at revision {todo.head}; nothing to do")
        return
    found = f"at revision {todo.found}" if todo.found else "empty"
    note = ", though it did not say so" if todo.adopts else ""
    click.echo(f"{name}: {'was' if done else 'is'} {found}{note}; {'now' if done else 'the server wants'} {todo.head}")
    for step in todo.steps:
        click.echo(f"  {step.revision}  {step.title}")
    if todo.copy is not None:
        click.echo(f"as it was before: {todo.copy}")
