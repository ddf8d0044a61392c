"""``shoal-agent``: the command on the device."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click
import msgspec

from edge_agent import __version__
from edge_agent.config import AgentConfig, prepare_state, read_config
from edge_agent.contract.enrolment import EnrolmentRequest
from edge_agent.contract.errors import ShoalError
from edge_agent.identity import identity_to_serve_with
from edge_agent.log_limit import RepeatLimit

_state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State folder.  [default: /var/lib/shoal]"
)
_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="TOML file with settings."
)


class _Commands(click.Group):
    """Errors of ours end the command with one line that says what to do, and an exit code of their own."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            click.echo(f"shoal-agent: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shoal-agent")
def main() -> None:
    """Runs models on this device, and keeps them right together with the fleet's server.

    \b
    The first time on a device:
      shoal-agent enrol --server https://fleet.example:8080 --claim TOKEN --device press-7
      shoal-agent run

    \b
    Then applications ask it over the Open Inference Protocol:
      curl localhost:8500/v2/models/digits
      curl localhost:8500/v2/models/digits/infer -d '{"inputs": [...]}'

    Exit codes: 2 settings, 3 package, 4 trust, 5 network, 6 this machine (port, disk, permission), 7 refused (by the
    server, which would say the same again).
    """  # noqa: D301 - click wants the \b itself


@main.command("enrol")
@_config_option
@_state_option
@click.option("--server", required=True, help="Base URL of the fleet server.")
@click.option("--claim", required=True, envvar="SHOAL_CLAIM", help="One-time token, from `shoal devices claim`.")
@click.option("--device", required=True, help="What this device shall be called: a-z, 0-9, '-' and '_'.")
@click.option("--image-root", type=click.Path(exists=True, path_type=Path), help="Pinned root.json of the packages.")
@click.option("--director-root", type=click.Path(exists=True, path_type=Path), help="Pinned root.json of the director.")
def enrol_command(
    *,
    config_path: Path | None,
    state: Path | None,
    server: str,
    claim: str,
    device: str,
    image_root: Path | None,
    director_root: Path | None,
) -> None:
    """Join a fleet: exchange a claim token for this device's identity.

    The identity lies in the state folder, readable by its owner alone. Without --image-root and --director-root the
    server's trust anchors are taken on first use: give them where the network between cannot be trusted.
    """
    from edge_agent.enrol import enrol
    from edge_agent.monitor.machine import hardware  # with psutil and HTTP's client: only who needs them pays for them

    config = _settings(config_path, state)
    folder = Path(config.state)
    prepare_state(folder)
    request = EnrolmentRequest(claim=claim, device=device, hardware=hardware())
    enrolment = enrol(folder, server, request, image_root=image_root, director_root=director_root)
    click.echo(f"{enrolment.device} has joined fleet '{enrolment.fleet}'. Next: shoal-agent run --state {folder}")


@main.command("run")
@_config_option
@_state_option
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port; 0 takes a free one.  [default: 8500]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def run_command(
    config_path: Path | None, state: Path | None, host: str | None, port: int | None, log_level: str
) -> None:
    """Serve this device's models until SIGTERM or SIGINT.

    Starts from the state folder alone: the last good model serves even with no network. Once it listens, the file
    agent.json in the state folder names its address and process.
    """
    from edge_agent.agent import Agent
    from edge_agent.runtime.memory import share_heap

    share_heap()
    log_to_stderr(log_level)
    config = _settings(config_path, state)
    api = msgspec.structs.replace(
        config.api,
        host=config.api.host if host is None else host,
        port=config.api.port if port is None else port,
    )
    # Until the HTTP server minds signals itself, one that comes while models load must end in order too: killed there,
    # a package on probation would be blamed for it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Agent(msgspec.structs.replace(config, api=api)).run()


def log_to_stderr(level: str) -> None:
    """Log from this level on: ``debug``, which leaves nothing out, ``info`` or ``warning``."""
    handler, repeats = logging.StreamHandler(sys.stderr), ""
    if level != "debug":
        handler.addFilter(RepeatLimit())
        repeats = "%(repeats)s"
    form = f"%(asctime)s %(levelname)-7s %(name)s: %(message)s{repeats}"
    logging.basicConfig(level=level.upper(), handlers=[handler], format=form)
    # They name each key that has not signed what a threshold of others has, and each file here that a new key does not
    # vouch for, as if that were an attack. What is one, the device says itself.
    for name in ("tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def _package_folder(context: click.Context, argument: click.Parameter, package: Path) -> Path:
    if not package.is_dir():
        raise click.BadParameter(
            f"{package} is a file. A device serves packages: folders with a manifest.json, where a model in ONNX lies "
            "with its contract and golden samples. The trainer makes one by a recipe: shoal trainer train --help",
            ctx=context,
            param=argument,
        )
    return package


@main.command("install")
@_config_option
@_state_option
@click.argument("package", type=click.Path(exists=True, path_type=Path), callback=_package_folder)
def install_command(config_path: Path | None, state: Path | None, package: Path) -> None:
    """Put the model PACKAGE (a folder) on this device by hand, as a factory image does.

    Every digest is verified and the golden samples are answered before it becomes active. It takes the place of the
    package of that model that is active, which is kept and served again should the new one not start. Run it while the
    agent is stopped. What the fleet decides about is changed there.
    """
    from edge_agent.by_hand import install

    config = _settings(config_path, state)
    prepare_state(Path(config.state))
    done = install(Path(config.state), package)
    name, version = done.manifest.name, done.manifest.version
    if done.is_same:
        said = f"{name} {version} was active already, this very package."
    elif done.before:
        said = f"{name} {version} is active; {name} {done.before} was, and is kept to go back to."
    else:
        said = f"{name} {version} is active."
    click.echo(f"{said} Next: shoal-agent run --state {config.state}")


@main.command("remove")
@_config_option
@_state_option
@click.argument("model")
def remove_command(config_path: Path | None, state: Path | None, model: str) -> None:
    """Take MODEL off this device, with its packages. Run it while the agent is stopped.

    Only what was installed by hand: what the fleet decides about is taken away there, what lies in the folder
    runtime.models by removing its folder.
    """
    from edge_agent.by_hand import remove

    config = _settings(config_path, state)
    prepare_state(Path(config.state))
    remove(Path(config.state), model)
    click.echo(f"{model} is no longer installed on this device.")


@main.command("status")
@_config_option
@_state_option
def status_command(config_path: Path | None, state: Path | None) -> None:
    """Show who this device is, what its models run on, and where their updates stand.

    All of it from the state folder: the agent may be stopped. What an update waits for is known to the running agent
    alone, which reports it to its fleet.
    """
    from edge_agent.update.status import status_lines

    config = _settings(config_path, state)
    folder = Path(config.state)
    identity, trouble = identity_to_serve_with(folder)
    enrolled = (
        f"device  {identity.device} of fleet {identity.fleet} at {identity.server}" if identity else "not enrolled"
    )
    click.echo(f"damaged {trouble}" if trouble else enrolled)
    for line in status_lines(folder):
        click.echo(line)


def _settings(path: Path | None, state: Path | None) -> AgentConfig:
    config = read_config(path)
    return config if state is None else msgspec.structs.replace(config, state=str(state))


if __name__ == "__main__":
    main()
