"""``shoal rollouts``."""

from __future__ import annotations

from typing import Any

import click

from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_fields, show_json, show_table, when


@click.group("rollouts", short_help="Bring a package to the fleet in waves.")
def rollouts_group() -> None:
    """Bring a package to the fleet in waves, each behind a health gate.

    \b
    DRAFT -> RUNNING <-> PAUSED
                |           |
                +-> DONE    +-> HALTED   (too many devices failed, or you said so; final)

    What a training run releases is rolled out by itself, but never over a rollout that a person made and that is not
    finished: it is then published and waits. To decide on each release yourself, set `automatic = false` under
    [rollouts] in the server's settings.
    """  # noqa: D301  click wants the \b itself


@rollouts_group.command("list")
@click.option("--model", help="Of this model only.")
@as_json
@connects
def list_rollouts(rest: Rest, model: str | None, *, json_: bool) -> None:
    """List rollouts, newest first."""
    found = rest.get("rollouts", model=model)
    if json_:
        show_json(found)
        return
    rows = [
        (
            one["id"],
            f"{one['model']} {one['version']}",
            one["state"],
            _wave(one),
            _counts(one),
            "training run" if one["automatic"] else "a person",
            ago(one["created_at_ms"]),
        )
        for one in found
    ]
    show_table(
        ("rollout", "package", "state", "wave", "devices", "made by", "created"), rows, empty="there are no rollouts"
    )


@rollouts_group.command("show")
@click.argument("rollout")
@as_json
@connects
def show_rollout(rest: Rest, rollout: str, *, json_: bool) -> None:
    """Show one rollout with all its devices."""
    _show(rest.get(f"rollouts/{part(rollout)}"), json_=json_)


@rollouts_group.command("create")
@click.argument("model")
@click.argument("package")
@click.option("--waves", help="Counts or percentages, cumulative; the last is 100%.  Example: 1,50%,100%")
@click.option("--reason", default="", help="Why, for whoever reads it later.")
@click.option("--soak", "soak_s", type=float, help="Seconds that a wave must be healthy for.")
@click.option("--min-requests", type=int, help="Requests that each device must have answered.")
@click.option("--max-failed-rate", type=float, help="Share of them that may fail, e.g. 0.01.")
@click.option("--max-failures", type=int, help="Devices that may fail before the rollout halts.")
@click.option("--revert", is_flag=True, help="On a halt, send back the devices that have committed, too.")
@click.option("--draft", is_flag=True, help="Do not start yet; `shoal rollouts resume` does.")
@click.option("--supersede", is_flag=True, help="End an active rollout of the model first.")
@as_json
@connects
def create_rollout(rest: Rest, /, model: str, package: str, *, json_: bool, **options: Any) -> None:
    """Roll out PACKAGE (a version or digest) of MODEL. An older version rolls the fleet back.

    Example: shoal rollouts create digits 20260101-0300 --waves 1,50%,100% --soak 600
    """
    waves = [part.strip() for part in options["waves"].split(",")] if options["waves"] else None
    body = {
        "model": model,
        "package": package,
        "waves": waves,
        "reason": options["reason"],
        "gate": {name: options[name] for name in ("soak_s", "min_requests", "max_failed_rate", "max_failures")},
        "revert": options["revert"],
        "start": not options["draft"],
        "supersede": options["supersede"],
    }
    _show(rest.post("rollouts", body), json_=json_)


@rollouts_group.command("pause")
@click.argument("rollout")
@connects
def pause_rollout(rest: Rest, rollout: str) -> None:
    """Give the package to no further device; those that have it go on."""
    _tell(rest.post(f"rollouts/{part(rollout)}/pause"))


@rollouts_group.command("resume")
@click.argument("rollout")
@connects
def resume_rollout(rest: Rest, rollout: str) -> None:
    """Go on with a paused rollout, or start a draft."""
    _tell(rest.post(f"rollouts/{part(rollout)}/resume"))


@rollouts_group.command("halt")
@click.argument("rollout")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@click.option("--revert/--keep", default=None, help="Whether devices that have committed go back, too.")
@connects
def halt_rollout(rest: Rest, rollout: str, reason: str, *, revert: bool | None) -> None:
    """End a rollout for good; devices that have not committed go back to what they had."""
    _tell(rest.post(f"rollouts/{part(rollout)}/halt", {"reason": reason, "revert": revert}))


def _show(one: dict[str, Any], *, json_: bool) -> None:
    if json_:
        show_json(one)
        return
    show_fields(
        [
            ("rollout", one["id"]),
            ("package", f"{one['model']} {one['version']} ({one['package'][:12]})"),
            ("state", one["state"]),
            ("note", one["note"]),
            ("reason", one["reason"]),
            ("made by", "the server, after a training run" if one["automatic"] else "a person"),
            ("wave", _wave(one)),
            ("devices", _counts(one)),
            ("created", when(one["created_at_ms"])),
            *([("next", _next(one))] if one["state"] == "halted" else []),
        ]
    )
    if one["devices"]:
        click.echo()
        rows = [
            (member["device"], _one_up(member["wave"]), member["progress"], member["reason"] or None)
            for member in one["devices"]
        ]
        show_table(("device", "wave", "progress", "reason"), rows, empty="")


def _tell(one: dict[str, Any]) -> None:
    click.echo(f"rollout {one['id']} is {one['state']}")


def _next(one: dict[str, Any]) -> str:
    """What is left to do about a rollout that was halted."""
    model = one["model"]
    return (
        f"a halted rollout is final; `shoal rollouts create {model} VERSION` makes another, of this version or of one "
        f"that `shoal models show {model}` lists"
    )


def _one_up(wave: int | None) -> int | None:
    """People count waves from one."""
    return wave + 1 if wave is not None else None


def _wave(one: dict[str, Any]) -> str:
    if one["state"] == "done" and not one["devices"]:
        return "-"  # it was over before its first
    return f"{_one_up(one['wave'])} of {len(one['waves'])}"


def _counts(one: dict[str, Any]) -> str:
    if one["state"] == "done" and not one["devices"]:
        return "none yet: those that enrol get it"
    return ", ".join(f"{count} {name}" for name, count in one["counts"].items() if count) or "none"
