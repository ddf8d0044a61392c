"""``shoal runs``."""

from __future__ import annotations

import click

from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_fields, show_json, show_table, when


@click.group("runs")
def runs_group() -> None:
    """See training runs and ask for one. A worker carries them out: shoal trainer --help."""


@runs_group.command("list")
@click.option("--model", help="Of this model only.")
@as_json
@connects
def list_runs(rest: Rest, model: str | None, *, json_: bool) -> None:
    """List training runs, newest first."""
    found = rest.get("runs", model=model)
    if json_:
        show_json(found)
        return
    rows = [(one["id"], one["model"], one["trigger"], one["state"], ago(one["created_at_ms"])) for one in found]
    show_table(("run", "model", "trigger", "state", "asked for"), rows, empty="no runs yet: shoal runs start MODEL")


@runs_group.command("show")
@click.argument("run")
@as_json
@connects
def show_run(rest: Rest, run: str, *, json_: bool) -> None:
    """Show one run: what it was made from, how it ended and why."""
    one = rest.get(f"runs/{part(run)}")
    if json_:
        show_json(one)
        return
    times = {name for name in one if name.endswith("_ms")}
    show_fields([(name, when(value) if name in times else value) for name, value in one.items()])


@runs_group.command("start")
@click.argument("model")
@click.option("--reason", default="asked for", show_default=True, help="Why, for whoever reads it later.")
@as_json
@connects
def start_run(rest: Rest, model: str, reason: str, *, json_: bool) -> None:
    """Ask for a training run of MODEL; the next free worker claims it."""
    asked = rest.post("runs", {"model": model, "reason": reason})
    show_json(asked) if json_ else click.echo(asked["run"])
