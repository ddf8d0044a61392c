"""``shoal models approvals | approve | reject``: releases that wait for a second signature."""

from __future__ import annotations

from typing import Any

import click

from fleet_server.commands.approve import approve
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_json, show_table


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
            ", ".join(one["signed"]),
            ago(one["proposed_at_ms"]),
            one["reason"],
        )
        for one in found
    ]
    headings = ("model", "version", "package", "state", "missing", "signed by", "since", "reason")
    show_table(headings, rows, empty="nothing waits for approval")


@click.command("reject")
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@connects
def reject(rest: Rest, model: str, version: str, reason: str) -> None:
    """Refuse a release that still lacks a signature: the publisher drops it."""
    rest.post(f"approvals/{part(model)}/{part(version)}/reject", {"reason": reason})
    click.echo(f"{model} {version} is refused")


approval_commands = (list_approvals, approve, reject)
