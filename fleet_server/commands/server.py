"""``shoal server``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from edge_agent.contract.errors import ConfigurationError
from fleet_server.commands.migrate import migrate_command


@click.group("server", invoke_without_command=True, short_help="Run the fleet server: console, REST API, broker.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of everything that it keeps.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port of the console and the REST API; 0 takes a free one.  [default: 8080]")
@click.option("--broker-port", type=int, help="Port of the embedded MQTT broker; 0 takes a free one.  [default: 1883]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
@click.pass_context
def server_command(context: click.Context, /, config_path: Path | None, log_level: str, **options: Any) -> None:
    """Run the fleet server with everything it needs built in: SQLite, an MQTT broker, a Delta lake in a folder.

    \b
    The first time:
      shoal keys init KEYS --model digits
      shoal server init --data DATA --keys KEYS
      shoal server --data DATA

    It prints a link into the console that works once (`shoal login` makes another), writes an administrator's token to
    DATA/admin.token and, once it is ready, its addresses to DATA/server.json. SIGTERM or Ctrl-C ends it in order.

    \b
    Environment: SHOAL_DATA SHOAL_FLEET SHOAL_DATABASE SHOAL_LAKE SHOAL_PUBLIC_URL SHOAL_BROKER_PASSWORD
                 SHOAL_KEYS_PASSPHRASE (of DATA/keys/director.pem)
    """  # noqa: D301  click wants the \b itself
    if context.invoked_subcommand is not None:
        return
    from fleet_server.config import read_config
    from fleet_server.server import build

    log_to_stderr(log_level)
    # The embedded broker listens where the server does.
    places = {"data": ("data",), "host": ("http", "host"), "port": ("http", "port"), "broker_port": ("broker", "port")}
    overrides: dict[tuple[str, ...], Any] = {places[name]: value for name, value in options.items()}
    if isinstance(overrides[("data",)], Path):
        overrides[("data",)] = str(overrides[("data",)])
    if options["host"] is not None:
        overrides[("broker", "host")] = options["host"]
    build(read_config(config_path, overrides)).run()


def log_to_stderr(level: str) -> None:
    """Log from this level on: ``debug``, ``info`` or ``warning``."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    for chatty in ("alembic", "apscheduler", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # They name each key that has not signed what a threshold of others has, as if that were an attack. What is one, the
    # server says itself.
    for name in ("tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


@server_command.command("init")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), envvar="SHOAL_DATA", help="The data folder.")
@click.option("--keys", required=True, type=click.Path(path_type=Path, file_okay=False), help="From `shoal keys init`.")
def init_command(data: Path | None, keys: Path) -> None:
    """Make the data folder and copy into it what the server needs of the keys: the director's, and the two roots.

    The keys that sign packages stay where they are: a stolen server cannot make a model that devices install. A server
    that runs goes on with the keys it began with, until it is started again.
    """
    from fleet_server.data_folder import DataFolder

    if data is None:
        raise ConfigurationError("no data folder: give --data DIR, or set SHOAL_DATA")
    folder = DataFolder(data)
    folder.prepare()
    try:
        unlock = folder.lock()  # no server begins with one half of the keys
    except ConfigurationError:
        folder.take_keys(keys)
        click.echo(
            f"{data} has the keys, and the server that runs in it goes on with those it began with. "
            f"Next: end it (SIGTERM or Ctrl-C) and start it again, shoal server --data {data}; "
            "from then on devices follow the new ones"
        )
        return
    try:
        folder.take_keys(keys)
    finally:
        unlock()
    click.echo(f"{data} is ready. Next: shoal server --data {data}")


server_command.add_command(migrate_command)
