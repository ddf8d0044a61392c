"""``shoal tokens`` and ``shoal login``."""

from __future__ import annotations

import click

from fleet_server.access.roles import Role
from fleet_server.commands.rest import Rest, connects
from fleet_server.commands.tables import ago, as_json, show_json, show_table


@click.group("tokens")
def tokens_group() -> None:
    """Create, list and revoke tokens of the REST API.

    \b
    viewer   reads everything
    trainer  claims training runs and publishes signed packages
    admin    does everything
    """  # noqa: D301  click wants the \b itself


@tokens_group.command("create")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it allows.")
@click.option("--name", required=True, help="Whose it is, for the list.")
@as_json
@connects
def create_token(rest: Rest, role: str, name: str, *, json_: bool) -> None:
    """Create a token. It is shown this once.

    Example: shoal tokens create --role trainer --name "nightly trainer"
    """
    created = rest.post("tokens", {"role": role, "name": name})
    show_json(created) if json_ else click.echo(created["token"])


@tokens_group.command("list")
@as_json
@connects
def list_tokens(rest: Rest, *, json_: bool) -> None:
    """List the valid tokens."""
    found = rest.get("tokens")
    if json_:
        show_json(found)
        return
    rows = [(one["id"], one["role"], one["name"], ago(one["created_at_ms"])) for one in found]
    show_table(("id", "role", "name", "created"), rows, empty="there are no tokens")


@tokens_group.command("revoke")
@click.argument("token_id", type=int)
@connects
def revoke_token(rest: Rest, token_id: int) -> None:
    """End the token with this id (see `shoal tokens list`)."""
    rest.delete(f"tokens/{token_id}")
    click.echo(f"token {token_id} is revoked")


@click.command("login")
@connects
def login_command(rest: Rest) -> None:
    """Print a link that opens the console. It works once, for an hour."""
    click.echo(rest.post("logins")["url"])
