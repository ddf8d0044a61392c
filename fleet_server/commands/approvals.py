"""``shoal models approvals | approve | reject``, and how other commands show releases that wait for a signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fleet_server.commands.approve import approve
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_json, show_table
from fleet_server.updates import approving


@click.command("approvals")
@as_json
@connects
def list_approvals(rest: Rest, *, json_: bool) -> None:
    """List the releases that wait for an approver's signature, and those that were refused."""
    found = rest.get("approvals")
    if json_:
        show_json(found)
        return
    rows = [
        (
            one["model"],
            one["version"],
            one["package"][:12] or "-",
            one["state"],
            f"{one['missing']} of {one['threshold']}" if one["state"] == "waiting" else "-",
            approving.persons(one["signed"]),
            approving.still_needed(one["missing"], one["unsigned"]) or "-",
            ago(one["proposed_at_ms"]),
            one["reason"] + (f" (token {one['refused_by']})" if one.get("refused_by") else ""),
        )
        for one in found
    ]
    headings = ("model", "version", "package", "state", "missing", "signed by", "needed", "since", "reason")
    show_table(headings, rows, empty="nothing waits for approval")
    show_waiting([one for one in found if one["state"] == "waiting"])


def waiting(rest: Rest, model: str = "") -> list[dict[str, Any]]:
    """The releases that wait for approval, of one model or of all."""
    found = [one for one in rest.get("approvals") if one["state"] == "waiting"]
    return [one for one in found if model in ("", one["model"])]


def unreleased(rest: Rest, model: str) -> list[dict[str, Any]]:
    """What waits for approval of a model, and what was refused."""
    return [one for one in rest.get("approvals") if one["model"] == model]


def show_refused(found: Sequence[dict[str, Any]]) -> None:
    """Print of each release that was refused when, with which token, and why."""
    for one in found:
        at, by = one.get("refused_at_ms"), one.get("refused_by", "")  # an older server says neither
        click.echo(f"\n{approving.refusal(one['model'], one['version'], one['reason'], at, by)}")


def show_waiting(found: Sequence[dict[str, Any]]) -> None:
    """Print of each release that waits who has signed it, who is still needed, and what they type."""
    for one in found:
        what = f"{one['model']} {one['version']}"
        if not one["package"]:
            what += " (what is released, signed for another lifetime)"
        needed = approving.still_needed(one["missing"], one["unsigned"])
        if one["reason"]:
            click.echo(f"\n{what} waits: {one['reason']}")
        elif not needed:
            click.echo(f"\n{what} has all its signatures since {ago(one['complete_since_ms'])}; {approving.PUBLISHER}")
        else:
            signed = approving.persons(one["signed"])
            click.echo(f"\n{what} waits for approval since {ago(one['proposed_at_ms'])}")
            click.echo(f"  signed by {signed}; still needed: {needed}")
            for command in approving.commands(one["model"], one["version"], one["missing"], one["unsigned"]):
                click.echo(f"  {command}")


@click.command("reject")
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@connects
def reject(rest: Rest, model: str, version: str, reason: str) -> None:
    """Refuse a release that still lacks a signature: the publisher drops it. This needs a token of role admin."""
    if not reason.strip():
        raise click.BadParameter(
            "it is empty; say why the release is refused: the publisher, and who lists the releases later, read it",
            param_hint="--reason",
        )
    rest.post(f"approvals/{part(model)}/{part(version)}/reject", {"reason": reason})
    click.echo(f"{model} {version} is refused")


approval_commands = (list_approvals, approve, reject)
