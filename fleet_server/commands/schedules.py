"""``shoal schedules``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click

from edge_agent.contract.errors import ConfigurationError
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import as_json, show_fields, show_json, show_table, when

_KINDS = ("cron", "interval", "labels", "manual")
_CATCH_UP = click.Choice(["skip", "latest", "all"])


@click.group("schedules", short_help="When models are trained, and batches answered.")
def schedules_group() -> None:
    """When models are trained, batches answered and the lake tended; each schedule is a graph of steps.

    \b
    shoal schedules put nightly --model digits --cron "0 3 * * *"
    shoal schedules put fresh --model digits --labels 500
    shoal schedules put pipeline --file pipeline.toml
    """  # noqa: D301  click wants the \b itself


@schedules_group.command("list")
@as_json
@connects
def list_schedules(rest: Rest, *, json_: bool) -> None:
    """List the schedules, each with its next slot."""
    found = rest.get("schedules")
    if json_:
        show_json(found)
        return
    rows = [
        (one["name"], one["model"], _when(one), _graph(one), one["catch_up"], when(one["next_ms"])) for one in found
    ]
    headings = ("schedule", "model", "when", "steps", "catch-up", "next")
    show_table(headings, rows, empty='no schedules yet: shoal schedules put NAME --model MODEL --cron "0 3 * * *"')


@schedules_group.command("show")
@click.argument("name")
@as_json
@connects
def show_schedule(rest: Rest, name: str, *, json_: bool) -> None:
    """Show one schedule with its graph of steps."""
    one = rest.get(f"schedules/{part(name)}")
    if json_:
        show_json(one)
        return
    fields = [("schedule", one["name"]), ("model", one["model"]), ("when", _when(one)), ("catch-up", one["catch_up"])]
    show_fields([*fields, ("next", when(one["next_ms"]))])
    click.echo()
    rows = [
        (
            step["name"] or "-",
            step["kind"],
            ", ".join(step["needs"]) or None,
            f"{step['retries']} after {step['backoff_s']:g} s" if step["retries"] else None,
            f"{step['timeout_s']:g} s" if step["timeout_s"] else None,
            step["priority"],
        )
        for step in one["steps"]
    ]
    show_table(("step", "kind", "needs", "retries", "timeout", "priority"), rows, empty="")


@schedules_group.command("put")
@click.argument("name")
@click.option("--model", help="Whose; of a file, the file's.")
@click.option("--cron", metavar="FIELDS", help="Five fields: minute, hour, day, month, weekday.")
@click.option("--every", metavar="SECONDS", help="An interval.")
@click.option("--labels", metavar="COUNT", help="Whenever so many new labels have come.")
@click.option("--manual", is_flag=True, help="Only when a person or a program starts it.")
@click.option("--timezone", help="In which cron fields are read.  [default: UTC]")
@click.option("--catch-up", type=_CATCH_UP, help="What becomes of slots missed.  [default: latest]")
@click.option("--disabled", is_flag=True, help="Keep it, but make no runs.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML or JSON with the same settings and `steps`, as docs/schedules.md describes them.",
)
@connects
def put_schedule(rest: Rest, /, name: str, *, file: Path | None, **options: Any) -> None:
    """Create or change the schedule NAME; unless it has steps, it trains."""
    body = _read(file) if file is not None else {}
    whens = {"cron": options["cron"], "interval": options["every"], "labels": options["labels"]}
    given = [(kind, text) for kind, text in whens.items() if text is not None]
    given += [("manual", "")] if options["manual"] else []
    if len(given) > 1:
        raise ConfigurationError("give one of --cron, --every, --labels and --manual")
    if given:
        body["kind"], body["expression"] = given[0]
    for key in ("model", "timezone", "catch_up"):
        if options[key] is not None:
            body[key] = options[key]
    if options["disabled"]:
        body["enabled"] = False
    if "model" not in body:
        raise ConfigurationError("whose model? give --model, or `model` in the file")
    if "kind" not in body and "expression" not in body:
        raise ConfigurationError("when? give --cron, --every, --labels or --manual, or `kind` and `expression`")
    rest.put(f"schedules/{part(name)}", body)
    one = rest.get(f"schedules/{part(name)}")
    click.echo(f"schedule {name}: {_when(one)}, next {when(one['next_ms'])}")
    if one["unknown_models"]:
        names = ", ".join(one["unknown_models"])
        click.echo(
            f"warning: no package and no worker names {names} (yet): its runs wait until one does; is it misspelt? "
            "`shoal models list` shows what there is",
            err=True,
        )


@schedules_group.command("delete")
@click.argument("name")
@connects
def delete_schedule(rest: Rest, name: str) -> None:
    """Delete a schedule; its runs stay."""
    rest.delete(f"schedules/{part(name)}")
    click.echo(f"schedule {name} is deleted")


@schedules_group.command("start")
@click.argument("name")
@click.option("--reason", default="asked for", show_default=True, help="Why, for whoever reads it later.")
@click.option("--logical-time", help="That the runs stand for; now unless given.")
@as_json
@connects
def start_schedule(rest: Rest, name: str, reason: str, logical_time: str | None, *, json_: bool) -> None:
    """Make a schedule's runs now, whatever its calendar says."""
    made = rest.post(f"schedules/{part(name)}/runs", {"reason": reason, "logical_time": logical_time})
    show_json(made) if json_ else click.echo("\n".join(made["runs"]))


@schedules_group.command("backfill")
@click.argument("name")
@click.option("--from", "from_", required=True, metavar="TIME", help="Slots from this moment on, e.g. 2026-03-01.")
@click.option(
    "--to",
    "until",
    required=True,
    metavar="TIME",
    help="Slots later than this moment get none; a date is its first moment, so that its own slots come after it.",
)
@click.option("--reason", default="backfill", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say which slots, and make nothing.")
@as_json
@connects
def backfill(rest: Rest, /, name: str, *, json_: bool, **options: Any) -> None:
    """Make the runs of past slots. Those that are there already stay; the new ones go behind all others."""
    body = {"from": options["from_"], "until": options["until"], "reason": options["reason"]}
    done = rest.post(f"schedules/{part(name)}/backfill", body | {"dry_run": options["dry_run"]})
    if json_:
        show_json(done)
        return
    for slot in done["slots"]:
        click.echo(slot)
    verb = "would get runs" if options["dry_run"] else f"got {len(done['runs'])} runs"
    click.echo(f"{len(done['slots'])} slots {verb}; {len(done['there'])} have theirs already")


@schedules_group.command("preview")
@click.argument("name")
@click.option("--count", default=5, show_default=True, help="Of coming slots.")
@click.option("--down-from", metavar="TIME", help="As if no server ran from then on ...")
@click.option("--down-until", metavar="TIME", help="... until then; now unless given.")
@click.option("--catch-up", type=_CATCH_UP, help="In place of the schedule's own.")
@as_json
@connects
def preview(rest: Rest, /, name: str, *, json_: bool, **options: Any) -> None:
    """Show what a schedule would do: its next slots, and what it would catch up after an outage. Nothing is made.

    Example: shoal schedules preview nightly --down-from 2026-03-01 --down-until 2026-03-04T12:00
    """
    found = rest.get(f"schedules/{part(name)}/preview", **options)
    if json_:
        show_json(found)
        return
    if any(found["order"]):
        click.echo(f"each time: {' -> '.join(found['order'])}")
    if "missed" in found:
        caught = set(found["caught_up"])
        click.echo(f"missed while no server ran (catch-up {found['catch_up']}):")
        for slot in found["missed"]:
            click.echo(f"  {slot}  {'caught up' if slot in caught else 'passed over'}")
        click.echo("then:")
    for slot in found["next"]:
        click.echo(f"  {slot}")


def _read(file: Path) -> dict[str, Any]:
    text = file.read_text()
    try:
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file}: holds no table of settings")
    return found


def _when(one: dict[str, Any]) -> str:
    how = {
        "cron": f"{one['expression']} {one['timezone']}",
        "interval": f"every {one['expression']} s",
        "labels": f"every {one['expression']} new labels",
    }
    state = "" if one["enabled"] else " (disabled)"
    return how.get(one["kind"], "by hand") + state + (f" (makes no runs: {one['wrong']})" if one.get("wrong") else "")


def _graph(one: dict[str, Any]) -> str:
    return ", ".join(step["name"] or step["kind"] for step in one["steps"])
