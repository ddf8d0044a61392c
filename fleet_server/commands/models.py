"""``shoal models``."""

from __future__ import annotations

from typing import Any

import click

from fleet_server.commands.approvals import approval_commands, show_refused, show_waiting, unreleased, waiting
from fleet_server.commands.rest import Refused, Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_fields, show_json, show_table, when

_NOT_FOUND = 404


@click.group("models")
def models_group() -> None:
    """See the released models, approve new ones, and take bad ones back."""


for _command in approval_commands:
    models_group.add_command(_command)


@models_group.command("list")
@as_json
@connects
def list_models(rest: Rest, *, json_: bool) -> None:
    """List all models and their champions: what a new device gets, and what the next version must beat.

    Below stand the releases that wait for an approver's signature.
    """
    found = rest.get("models")
    if json_:
        show_json(found)
        return
    rows = [
        (one["name"], one["champion_version"], len(one["versions"]), ago(one["versions"][0]["published_at_ms"]))
        for one in found
    ]
    show_table(("model", "champion", "versions", "newest"), rows, empty="nothing is published: shoal trainer --help")
    show_waiting(waiting(rest))


@models_group.command("show")
@click.argument("model")
@click.argument("version", required=False)
@as_json
@connects
def show_model(rest: Rest, model: str, version: str | None, *, json_: bool) -> None:
    """Show a model's versions, and what waits for approval or was refused; or one VERSION with its evaluation.

    VERSION may be a package digest, too.
    """
    if version is not None:
        _show_version(rest, model, version, json_=json_)
        return
    if json_:
        show_json(rest.get(f"models/{part(model)}"))
        return
    found = unreleased(rest, model)
    try:
        _show_versions(rest.get(f"models/{part(model)}"))
    except Refused as error:
        if error.status != _NOT_FOUND or not found:
            raise
        click.echo(f"nothing of {model} is released yet")
    show_waiting([one for one in found if one["state"] == "waiting"])
    show_refused([one for one in found if one["state"] == "refused"])


def _show_versions(found: dict[str, Any]) -> None:
    rows = [
        (
            one["version"] + (" *" if one["digest"] == found["champion"] else ""),
            one["digest"][:12],
            one["state"],
            when(one["published_at_ms"]),
            f"{one['size_bytes'] / 1e6:.2f} MB",
        )
        for one in found["versions"]
    ]
    show_table(("version", "package", "state", "published", "size"), rows, empty="no versions")
    click.echo("\n* the champion")


@models_group.command("withdraw")
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@connects
def withdraw(rest: Rest, model: str, version: str, reason: str) -> None:
    """Take a version back: its rollout is halted and no new device gets it.

    The champion is then the version whose rollout finished last, of those that are not withdrawn.
    Devices that run it go on until another version is rolled out: shoal rollouts create MODEL OLDER_VERSION
    """
    one = rest.post(f"models/{part(model)}/versions/{part(version)}/withdraw", {"reason": reason})
    left = rest.get(f"models/{part(model)}")
    champion = next((each for each in left["versions"] if each["digest"] == left["champion"]), None)
    click.echo(f"{model} {one['version']} is withdrawn. {_champion(champion)}")


def _champion(one: dict[str, Any] | None) -> str:
    if one is None:
        return "There is no champion now: new devices get nothing until a version is rolled out"
    if one["state"] == "rolled-out":
        return f"The champion is {one['version']}: its rollout was the last to finish ({when(one['state_at_ms'])})"
    return f"The champion is {one['version']}, the newest published; new devices get nothing until it is rolled out"


def _show_unreleased(rest: Rest, one: dict[str, Any]) -> None:
    if one["state"] == "refused":
        show_refused([one])
    else:
        show_waiting([one])
    evaluation = rest.get(f"approvals/{part(one['model'])}/{part(one['version'])}")["evaluation"]
    click.echo(f"\npackage  {one['package']}")
    if evaluation:
        click.echo("\nevaluation")
        show_json(evaluation)


def _show_version(rest: Rest, model: str, version: str, *, json_: bool) -> None:
    try:
        one = rest.get(f"models/{part(model)}/versions/{part(version)}")
    except Refused as error:
        if error.status != _NOT_FOUND or json_:
            raise
        found = [one for one in unreleased(rest, model) if version in {one["version"], one["package"]}]
        if not found:
            raise
        _show_unreleased(rest, found[0])
        return
    if json_:
        show_json(one)
        return
    lineage = one["lineage"]
    show_fields(
        [
            ("model", f"{one['model']} {one['version']}"),
            ("package", one["digest"]),
            ("state", f"{one['state']} since {when(one['state_at_ms'])} {one['state_reason']}".strip()),
            ("parent", one["parent"]),
            ("published", when(one["published_at_ms"])),
            ("size", f"{one['size_bytes']} bytes"),
            ("labels", ", ".join(one["labels"])),
            ("trained", f"{lineage['trained_at']}, run {lineage['run']}, seed {lineage['seed']}"),
            ("dataset", lineage["dataset"]),
        ]
    )
    if one["evaluation"]:
        click.echo("\nevaluation")
        show_json(one["evaluation"])
