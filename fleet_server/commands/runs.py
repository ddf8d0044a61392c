"""``shoal runs``."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, figure, show_fields, show_json, show_table, when

_WATCH_S = 1.0
_UNDER_WAY = ("blocked", "queued", "running")
_FAILED = ("failed", "cancelled", "skipped")


@click.group("runs")
def runs_group() -> None:
    """See runs, watch them, and ask for one. A worker carries them out: shoal trainer --help.

    RUN is a run's identifier, or the beginning of it.
    """


@runs_group.command("list")
@click.option("--model", help="Of this model only.")
@click.option("--schedule", help="Of this schedule only.")
@click.option("--state", help="In this state only, e.g. running.")
@click.option("--kind", type=click.Choice(["train", "batch", "upkeep"]), help="Of this kind only.")
@click.option("--limit", default=100, show_default=True)
@as_json
@connects
def list_runs(rest: Rest, /, *, json_: bool, **options: Any) -> None:
    """List runs, newest first; of one schedule, those of the newest slot first."""
    found = rest.get("runs", **options)
    if json_:
        show_json(found)
        return
    rows = [
        (
            one["id"],
            one["model"],
            one["step"] or one["kind"],
            when(one["logical_time_ms"]) if one["schedule"] else None,
            one["trigger"],
            one["state"],
            ago(one["created_at_ms"]),
        )
        for one in found
    ]
    headings = ("run", "model", "step", "slot", "trigger", "state", "asked for")
    show_table(headings, rows, empty="no runs yet: shoal runs start MODEL")


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
            ("schedule", f"{one['schedule']}, {_slot(one)}" if one["schedule"] else None),
            ("step", f"{one['step']} ({one['kind']})" if one["step"] else one["kind"]),
            ("needs", ", ".join(one["needs"]) or None),
            ("retries", f"{one['failures']} of {one['retries']} used" if one["retries"] else None),
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
    if one["metrics"]:
        click.echo("  ".join(f"{name} {figure(value)}" for name, value in sorted(one["metrics"].items())))
    if len(one["graph"]) > 1:
        click.echo()
        rows = [(step["step"], step["kind"], step["state"], ", ".join(step["needs"]) or None) for step in one["graph"]]
        show_table(("step", "kind", "state", "needs"), rows, empty="")
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


@runs_group.command("retry")
@click.argument("run")
@as_json
@connects
def retry_run(rest: Rest, run: str, *, json_: bool) -> None:
    """Queue a run anew that failed, was cancelled or skipped, with the steps that were skipped because of it."""
    one = rest.post(f"runs/{part(run)}/retry")
    show_json(one) if json_ else click.echo(f"run {one['id']} is {one['state']} again")


@runs_group.command("start")
@click.argument("model")
@click.option("--reason", default="asked for", show_default=True, help="Why, for whoever reads it later.")
@click.option("--seed", type=int, help="Of a training; the model's own unless given.")
@click.option("--priority", default=0, show_default=True, help="The higher goes first.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds after which an attempt is ended.")
@click.option("--retries", default=0, show_default=True, help="After failures that another try may mend.")
@click.option("--watch", is_flag=True, help="Watch it to its end.")
@as_json
@connects
def start_run(rest: Rest, /, model: str, *, json_: bool, seed: int | None, watch: bool, **options: Any) -> None:
    """Ask for a training run of MODEL; the next free worker claims it."""
    body = {"model": model, **options, "options": {} if seed is None else {"seed": seed}}
    asked = rest.post("runs", body)
    show_json(asked) if json_ else click.echo(asked["run"])
    if not asked["is_new"]:
        why = f"asked for because: {asked['reason']}; nothing new was asked"
        click.echo(f"run {asked['run']} is {asked['state']} already, {why}", err=True)
    if watch:
        _follow(rest, asked["run"])


@runs_group.command("watch")
@click.argument("run")
@connects
def watch_run(rest: Rest, run: str) -> None:
    """Watch a run to its end: stages, metrics and log. Exit status 7 where it failed."""
    _follow(rest, run)


@runs_group.command("logs")
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@connects
def run_logs(rest: Rest, run: str, *, follow: bool) -> None:
    """Print what a run has written; the newest 256 KiB of it are kept."""
    if follow:
        _follow(rest, run, progress=False)
    else:
        click.echo(rest.get(f"runs/{part(run)}/log")["text"], nl=False)


@runs_group.command("metrics")
@click.argument("run")
@as_json
@connects
def run_metrics(rest: Rest, run: str, *, json_: bool) -> None:
    """Show what a run has measured over time."""
    points = rest.get(f"runs/{part(run)}/metrics")
    if json_:
        show_json(points)
        return
    names = sorted({name for point in points for name in point["metrics"]})
    rows = [
        (when(point["at_ms"]), point["attempt"], f"{point['fraction']:.0%}", *(_metric(point, name) for name in names))
        for point in points
    ]
    show_table(("at", "attempt", "done", *names), rows, empty="it has measured nothing yet")


def _follow(rest: Rest, run: str, *, progress: bool = True) -> None:
    """Print a run's log, and its stages on standard error, until it has ended.

    The log tells every stage too: where nobody looks at a terminal, standard error tells of states alone.
    """
    after, said, told = 0, "", ""
    on_terminal = sys.stderr.isatty()
    while True:
        one = rest.get(f"runs/{part(run)}")
        piece = rest.get(f"runs/{part(run)}/log", after=after)
        if piece["text"]:
            click.echo(piece["text"], nl=False)
        after = piece["next"]
        line = _state(one) + "".join(f"  {name} {figure(value)}" for name, value in sorted(one["metrics"].items()))
        if progress and line != said and (on_terminal or one["state"] != told):
            running = one["state"] == "running" and not on_terminal
            click.echo("running" if running else line, err=True)
            said, told = line, one["state"]
        if one["state"] not in _UNDER_WAY:
            break
        time.sleep(_WATCH_S)
    for reason in one["reasons"]:
        click.echo(f"  - {reason}", err=True)
    if one["state"] in _FAILED:
        raise SystemExit(7)


def _metric(point: dict[str, Any], name: str) -> str | None:
    value = point["metrics"].get(name)
    return None if value is None else figure(value)


def _slot(one: dict[str, Any]) -> str:
    return f"slot {when(one['logical_time_ms'])}"


def _state(one: dict[str, Any]) -> str:
    if one["state"] == "queued":
        why = f" ({one['message']})" if one["message"] else ""
        return f"queued: waits for a worker{why}"
    if one["state"] == "blocked":
        return f"blocked: waits for {', '.join(one['needs'])}"
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
