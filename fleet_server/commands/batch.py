"""``shoal batch``."""

from __future__ import annotations

from pathlib import Path

import click

from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import as_json, show_fields, show_json, show_table


@click.group("batch")
def batch_group() -> None:
    """Look up what batch jobs have answered, by the key of the row.

    Jobs are run by schedules with steps of kind batch, or by hand: shoal trainer batch JOB.toml
    """


@batch_group.command("list")
@as_json
@connects
def list_jobs(rest: Rest, *, json_: bool) -> None:
    """List the jobs whose answers are served by key."""
    found = rest.get("predictions")
    if json_:
        show_json(found)
        return
    show_table(("job",), [(job,) for job in found], empty="no job has answered yet: shoal trainer batch --help")


@batch_group.command("show")
@click.argument("job")
@as_json
@connects
def show_job(rest: Rest, job: str, *, json_: bool) -> None:
    """Show where the answers of JOB are, and their newest logical time."""
    found = rest.get(f"predictions/{part(job)}")
    if json_:
        show_json(found)
        return
    show_fields(tuple(found.items()))


@batch_group.command("get")
@click.argument("job")
@click.argument("key")
@click.option("--logical-time", help="Of this batch alone; the newest that has the key unless given.")
@as_json
@connects
def get_prediction(rest: Rest, job: str, key: str, logical_time: str | None, *, json_: bool) -> None:
    """Show what JOB has answered to the row with this KEY."""
    found = rest.get(f"predictions/{part(job)}/{part(key)}", logical_time=logical_time)
    if json_:
        show_json(found)
        return
    outputs, columns = found.pop("outputs"), found.pop("columns")
    show_fields((*found.items(), *outputs.items(), *columns.items()))


@batch_group.command("register")
@click.argument("job")
@click.option("--kind", type=click.Choice(["delta", "parquet"]), default="delta", show_default=True)
@click.option("--path", required=True, help="Folder or URI of the table; the server must be able to read it.")
@connects
def register_job(rest: Rest, job: str, kind: str, path: str) -> None:
    """Let the server serve the answers of a JOB that was run by hand."""
    where = path if "://" in path else str(Path(path).absolute())
    found = rest.put(f"predictions/{part(job)}", {"kind": kind, "path": where})
    click.echo(f"{job}: {found['files']} files of answers are served, the newest of {found['newest']}")
