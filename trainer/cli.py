"""The trainer's commands: ``shoal trainer ...`` and ``shoal keys ...``. What needs torch is imported when it is run."""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import click
import msgspec

from edge_agent.contract.names import check_version
from edge_agent.contract.runs import RunFile, RunKind, RunState
from trainer.batch.cli import batch
from trainer.data.cli import commands as data_commands
from trainer.demo.cli import demo
from trainer.new.cli import new
from trainer.plain_errors import plainly
from trainer.publish.cli import keys_commands
from trainer.recipe import recipes_folder
from trainer.work.cli import reproduce_command

_RECIPES = click.option(
    "--recipes",
    envvar="SHOAL_RECIPES",
    show_envvar=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recipes; those that come with Shoal unless given.",
)
_LAKE = click.option("--lake", required=True, help="Folder or URI of the sample lake.")


def _given(_context: click.Context, option: click.Parameter, value: str | None) -> str:
    if value:
        return value
    name = str(option.envvar)
    state = "is set, but empty" if name in os.environ else "is not set"
    raise click.UsageError(f"no {option.name}: set {name} in the environment, or give --{option.name}; {name} {state}")


_SERVER = click.option(
    "--server", envvar="SHOAL_SERVER", show_envvar=True, callback=_given, help="Base URL of the fleet server."
)
_TOKEN = click.option(
    "--token",
    envvar="SHOAL_TOKEN",
    show_envvar=True,
    callback=_given,
    help="A token of role trainer. In the environment it is not seen in the list of processes.",
)
_DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error too.")
_KEYS = click.option(
    "--keys",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of signing keys, as `shoal keys init` made it.",
)


@click.group()
def trainer() -> None:
    """Make models: import data, train, judge, publish; or work for the fleet server.

    \b
    A first model by hand:
      shoal trainer import digits --lake DATA/lake
      shoal trainer train digits --lake DATA/lake --out build/digits-1 --version 1
      export SHOAL_SERVER=URL SHOAL_TOKEN=TOKEN
      shoal trainer publish build/digits-1 --keys KEYS
    and from then on, beside the server:
      shoal trainer work --keys KEYS
    """  # noqa: D301 - click wants the \b itself


trainer.add_command(new)
trainer.add_command(batch)
trainer.add_command(reproduce_command)
for _command in data_commands:
    trainer.add_command(_command)


@trainer.command()
@click.argument("model")
@_LAKE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the package folder shall lie.")
@click.option("--version", help="Of the new package; one after the champion's unless given.")
@click.option(
    "--champion",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Package folder of the model to beat; without it this is the first model.",
)
@click.option("--seed", default=0, show_default=True, type=int)
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that is kept: the same training, broken off, goes on from there.",
)
@_RECIPES
@_DEBUG
@plainly
def train(
    *,
    model: str,
    lake: str,
    out: Path,
    version: str | None,
    champion: Path | None,
    seed: int,
    checkpoints: Path | None,
    recipes: Path | None,
) -> None:
    """Train MODEL by hand on the newest data of the lake, and write its package where it is good enough.

    Exit status 0: the package is there; 7: the model was refused, or there was nothing to learn from.
    """
    import tempfile

    from rich.console import Console

    from edge_agent.runtime.package import Package
    from trainer.recipe import Recipe
    from trainer.training.bar import showing
    from trainer.work.run import PACKAGE_FOLDER, execute, next_version

    recipe = Recipe.load(recipes_folder(recipes) / model)
    beaten = Package.open(champion, verify=True) if champion else None
    now = dt.datetime.now(dt.UTC)
    run = RunFile(
        run=f"manual-{now:%Y%m%dt%H%M%S}",
        model=model,
        trigger="manual",
        reason="by hand",
        logical_time=now.isoformat(timespec="seconds"),
        lake=lake,
        seed=seed,
        fence=0,
        champion=beaten.digest if beaten else None,
        champion_version=beaten.manifest.version if beaten else None,
    )
    wanted = check_version(version or next_version(run.champion_version))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"{out} is there already; remove it, or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        work = Path(folder)
        with showing(Console(stderr=True)) as report:
            result = execute(
                run,
                recipe,
                work,
                champion=beaten,
                version=wanted,
                report=report,
                checkpoints=checkpoints,
            )
        if result.state is RunState.RELEASED:
            (work / PACKAGE_FOLDER).rename(out)
    click.echo(f"{result.state.value}: {'; '.join(result.reasons)}")
    if result.state is not RunState.RELEASED:
        sys.exit(7)
    click.echo(f"package {result.package} (version {result.version}) is in {out}")


@trainer.command("pipeline")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the package folder shall lie.")
@_DEBUG
@plainly
def make_pipeline(*, file: Path, out: Path) -> None:
    """Make a package of the pipeline that the TOML file FILE declares: models that run one after the other."""
    from trainer.release.pipeline import read_pipeline_file, write_pipeline

    package = write_pipeline(out, read_pipeline_file(file), file.parent)
    click.echo(f"package {package.digest} (version {package.manifest.version}) is in {out}")


@trainer.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_SERVER
@_TOKEN
@_KEYS
@_DEBUG
@plainly
def publish(folder: Path, server: str, token: str, keys: Path) -> None:
    """Sign the package in FOLDER and show it on the server."""
    from edge_agent.runtime.package import Package
    from trainer.publish.repository import Publisher

    package = Package.open(folder, verify=True)
    publisher = Publisher(keys, server, token)
    try:
        awaited = publisher.publish(package)
    finally:
        publisher.close()
    if awaited is not None:
        model, version = package.manifest.name, package.manifest.version
        click.echo(f"signed {model} version {version}; it {awaited}")
        click.echo(
            f"shoal models approve {model} {version} --key FILE; then the worker, or shoal keys publish {keys}, "
            "makes it visible"
        )
        return
    click.echo(f"published {package.manifest.name} version {package.manifest.version}, package {package.digest}")


@trainer.command()
@_SERVER
@_TOKEN
@_KEYS
@click.option(
    "--work",
    default=Path("shoal-work"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of its own, with the logs of the newest runs.",
)
@click.option("--once", is_flag=True, help="Take one run if one waits, then end.")
@click.option("--poll", "poll_s", default=2.0, show_default=True, help="Seconds between questions for work.")
@click.option("--at-once", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs at the same time.")
@click.option("--cpus", type=click.FloatRange(0), help="Processors to give away; all unless given.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to give away; all unless given.")
@click.option(
    "--kinds", default="train,batch,upkeep", show_default=True, help="What to take, e.g. `batch` beside a trainer."
)
@_RECIPES
@_DEBUG
@plainly
def work(
    *,
    server: str,
    token: str,
    keys: Path,
    work: Path,
    once: bool,
    poll_s: float,
    at_once: int,
    cpus: float | None,
    gpus: int | None,
    kinds: str,
    recipes: Path | None,
) -> None:
    """Work for the fleet server: train, answer batches, tend the lake; publish what is better, report the rest.

    A run gets what its step asks for (`resources`); one that asks for more than is free waits, or goes to another
    worker. Killed and begun anew in the same --work folder, a worker goes on at once with what it had, from the last
    checkpoint; told to stop, it hands its runs to others. A server that is away is asked again. Exit status 4: the
    server refuses the token; 0: told to stop.

    The lake is the server's: each run says where it lies (DATA/lake there, or what its setting SHOAL_LAKE says), and
    this machine must reach it under that path or URI.
    """
    from trainer.publish.repository import Publisher
    from trainer.server_client import ServerClient
    from trainer.work.room import Capacity
    from trainer.work.worker import MODULES, Timing, Worker

    wanted = {name.strip() for name in kinds.split(",")}
    if unknown := wanted - {kind.value for kind in RunKind}:
        raise click.UsageError(f"--kinds: {', '.join(sorted(unknown))} is none of train, batch, upkeep")

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    client, publisher = ServerClient(server, token), Publisher(keys, server, token)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    worker = Worker(
        client,
        publisher,
        recipes=recipes_folder(recipes),
        work=work,
        timing=Timing(poll_s=poll_s),
        capacity=Capacity.of_this_machine(at_once=at_once, cpus=cpus, gpus=gpus),
        modules={kind: module for kind, module in MODULES.items() if kind.value in wanted},
    )
    try:
        if not once:
            worker.work(stop)
        elif (result := worker.once(stop)) is None:
            click.echo("no run waits")
        else:
            click.echo(msgspec.json.encode(result).decode())
    finally:
        client.close()
        publisher.close()


# What `shoal` adds to its own commands (entry point group shoal.commands).
commands = [trainer, keys_commands, demo, reproduce_command]
