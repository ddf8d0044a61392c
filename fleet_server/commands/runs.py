"""``shoal runs``."""

from __future__ import annotations

from typing import Any

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
    show_fields(
        [
            ("run", one["id"]),
            ("model", one["model"]),
            ("state", _state(one)),
            ("asked for", f"{when(one['created_at_ms'])}, {one['trigger']}: {one['reason']}"),
            ("schedule", one["schedule"]),
            ("started", f"{when(one['started_at_ms'])}, attempt {one['attempts']}" if one["started_at_ms"] else None),
            ("ended", when(one["ended_at_ms"])),
            ("worker", one["worker"]),
            ("made from", _made_from(one)),
            ("released", f"{one['version']} ({one['package'][:12]})" if one["package"] else None),
            ("accuracy", _accuracy(one["evaluation"])),
        ]
    )
    for reason in one["reasons"]:
        click.echo(f"  - {reason}")
    if one["evaluation"]:
        click.echo(f"\nThe whole evaluation: shoal runs show {one['id']} --json")


@runs_group.command("cancel")
@click.argument("run")
@click.option("--reason", default="asked for", show_default=True, help="Why, for whoever reads it later.")
@as_json
@connects
def cancel_run(rest: Rest, run: str, reason: str, *, json_: bool) -> None:
    """End a run that waits or is under way; its worker stops at its next heartbeat."""
    one = rest.post(f"runs/{part(run)}/cancel", {"reason": reason})
    show_json(one) if json_ else click.echo(f"run {one['id']} is cancelled")


@runs_group.command("start")
@click.argument("model")
@click.option("--reason", default="asked for", show_default=True, help="Why, for whoever reads it later.")
@as_json
@connects
def start_run(rest: Rest, model: str, reason: str, *, json_: bool) -> None:
    """Ask for a training run of MODEL; the next free worker claims it."""
    asked = rest.post("runs", {"model": model, "reason": reason})
    show_json(asked) if json_ else click.echo(asked["run"])


def _state(one: dict[str, Any]) -> str:
    if one["state"] == "queued":
        return "queued: waits for a worker"
    if one["state"] != "running":
        return str(one["state"])
    words = ": ".join(text for text in (one["stage"], one["message"]) if text)
    return f"running, {one['fraction']:.0%} {words}".rstrip()


def _made_from(one: dict[str, Any]) -> str | None:
    versions = (("samples", one["samples_version"]), ("labels", one["labels_version"]))
    parts = [f"{name} of lake version {version}" for name, version in versions if version is not None]
    if one["champion_version"] is not None:
        parts.append(f"to beat {one['champion_version']} ({one['champion'][:12]})")
    return ", ".join(parts) or None


def _accuracy(evaluation: dict[str, Any]) -> str | None:
    """Challenger against champion on the current rows, where the evaluation says so."""
    current = evaluation.get("current")
    if not isinstance(current, dict):
        return None
    shares = [(name, current.get(name)) for name in ("challenger", "champion")]
    return ", ".join(f"{name} {share:.1%}" for name, share in shares if isinstance(share, int | float)) or None
