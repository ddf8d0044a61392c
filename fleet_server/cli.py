"""``shoal``: the command for people who run a fleet."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from edge_agent.contract.errors import ShoalError
from edge_agent.ending import run_and_end
from fleet_server import __version__
from fleet_server.commands.access import login_command, tokens_group
from fleet_server.commands.batch import batch_group
from fleet_server.commands.devices import devices_group
from fleet_server.commands.models import models_group
from fleet_server.commands.plugins import plugin_commands
from fleet_server.commands.rollouts import rollouts_group
from fleet_server.commands.runs import runs_group
from fleet_server.commands.schedules import schedules_group
from fleet_server.commands.server import server_command

_BUILT_IN: tuple[click.Command, ...] = (
    server_command,
    devices_group,
    models_group,
    rollouts_group,
    runs_group,
    schedules_group,
    batch_group,
    tokens_group,
    login_command,
)


class _Commands(click.Group):
    """Our own commands and those of plug-ins, which are loaded only when they are asked for.

    Errors of ours end the command with one line that says what to do, and an exit code of their own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Be the process's program: commands that read tables leave threads that its end would trip over."""
        run_and_end(lambda: self.main(*args, **kwargs))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *plugin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or plugin_commands().get(cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            click.echo(f"shoal: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shoal")
def main() -> None:
    """Runs machine-learning models on a fleet of devices, and keeps them right.

    \b
    Begin:
      shoal demo                                       a whole fleet on this machine, to see what it is
      shoal keys init KEYS --model digits              the fleet's signing keys
      shoal server init --data DATA --keys KEYS        the server's part of them
      shoal server --data DATA                         the server; prints a link into the console
      shoal devices claim --data DATA                  a token with which a device enrols (shoal-agent enrol)
      shoal trainer publish PACKAGE ... --keys KEYS    sign and publish a model (shoal trainer --help: train one)
      shoal rollouts create MODEL VERSION --data DATA  bring it to the devices, wave by wave
      shoal trainer work ... --keys KEYS               from then on: train, sign and publish what the server asks for

    Commands find the server with --data DIR (on its machine), or with --server URL and --token TOKEN, or SHOAL_SERVER
    and SHOAL_TOKEN.

    Exit codes: 2 settings, 3 package, 4 trust, 5 network, 6 this machine (port, disk, permission), 7 refused (by the
    server: there is no such thing, not now, not with this token).
    """  # noqa: D301  click wants the \b itself


for _command in _BUILT_IN:
    main.add_command(_command)


if __name__ == "__main__":
    main()
