"""``shoal trainer batch``."""

from __future__ import annotations

import datetime as dt
import tomllib
from pathlib import Path

import click

from trainer.plain_errors import plainly


@click.command("batch")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--logical-time",
    "logical_times",
    multiple=True,
    help="Slot that the answers stand for, RFC 3339 or a date; now unless given. Several are a backfill.",
)
@click.option("--server", envvar="SHOAL_SERVER", show_envvar=True, help="Base URL of the fleet server, for its models.")
@click.option("--token", envvar="SHOAL_TOKEN", show_envvar=True, help="A token of role trainer.")
@click.option(
    "--work",
    default=Path("shoal-work"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for packages that are fetched, and for what is not committed yet.",
)
@click.option("--replace", is_flag=True, help="Answer logical times anew that have their batch already.")
@click.option("--dry-run", is_flag=True, help="Say what would be answered, and answer nothing.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error too.")
@plainly
def batch(
    *,
    file: Path,
    logical_times: tuple[str, ...],
    server: str | None,
    token: str | None,
    work: Path,
    replace: bool,
    dry_run: bool,
) -> None:
    """Let a model answer a whole dataset, as the job in the TOML file FILE says (docs/batch.md).

    Killed or broken off, the same command goes on where it ended. With --server, the answers are served by key from
    then on: shoal batch get JOB KEY.
    """
    from trainer.batch.by_hand import answer_by_hand, read_job

    try:
        job = read_job(file, replace=replace)
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{file}: is no TOML: {error}") from error
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    answer_by_hand(job, logical_times or (now,), server=server, token=token, work=work, say=click.echo, dry_run=dry_run)
