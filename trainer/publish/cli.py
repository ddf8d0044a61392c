"""``shoal keys``: make, show and renew the keys that a fleet trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trainer.plain_errors import plainly
from trainer.publish.image_signing import ImageSigning, Lifetimes
from trainer.publish.keys import KeyFolder

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
_KIND = click.option("--kind", type=click.Choice(["ed25519", "ecdsa"]), default="ed25519", show_default=True)


@click.group("keys")
def keys_commands() -> None:
    """Make, show and renew the signing keys of a fleet.

    The image repository's keys say which models exist; the director's key, on the server, says which device runs which.
    Set SHOAL_KEYS_PASSPHRASE to keep private keys encrypted.
    """


@keys_commands.command()
@_FOLDER
@click.option("--model", "models", multiple=True, help="A model that gets a key of its own; may be given repeatedly.")
@_KIND
@click.option("--root-days", default=365.0, show_default=True, help="Lifetime of the roots.")
@click.option("--targets-days", default=90.0, show_default=True, help="Lifetime of the targets roles.")
@click.option("--snapshot-days", default=7.0, show_default=True, help="Lifetime of snapshot and timestamp.")
@plainly
def init(folder: Path, models: tuple[str, ...], kind: str, **days: Any) -> None:
    """Make all keys in DIR and sign an image repository without packages.

    Then take DIR/offline to a safe place, and give the server its part: shoal server init --data DATA --keys DIR
    """
    lifetimes = Lifetimes(root=days["root_days"], targets=days["targets_days"], snapshot=days["snapshot_days"])
    ImageSigning(KeyFolder.from_environment(folder), lifetimes=lifetimes).create(models, kind=kind)
    click.echo(f"made the keys of a fleet in {folder}; take {folder / 'offline'} to a safe place")


@keys_commands.command()
@_FOLDER
@plainly
def show(folder: Path) -> None:
    """Show which keys are in DIR, what they have signed and when that expires."""
    keys = KeyFolder.from_environment(folder)
    signing = ImageSigning(keys)
    for name in keys.names():
        click.echo(f"key      {name}")
    for model, packages in signing.models().items():
        click.echo(f"model    {model}: {len(packages)} packages signed{', last ' + packages[-1] if packages else ''}")
    for role, expires in sorted(signing.expiries().items()):
        click.echo(f"expires  {expires:%Y-%m-%d %H:%M} UTC  {role}")


@keys_commands.command("add-model")
@_FOLDER
@click.argument("model")
@_KIND
@plainly
def add_model(folder: Path, model: str, kind: str) -> None:
    """Make a key for MODEL. Needs DIR/offline/image-targets.pem."""
    keys = KeyFolder.from_environment(folder)
    with keys.alone():
        ImageSigning(keys).add_model(model, kind=kind)
    click.echo(f"packages of {model} are signed with {folder / 'publisher' / (model + '.pem')}")


@keys_commands.command()
@_FOLDER
@plainly
def renew(folder: Path) -> None:
    """Sign roots and targets anew before they expire. Needs DIR/offline."""
    keys = KeyFolder.from_environment(folder)
    with keys.alone():
        ImageSigning(keys).renew()
    click.echo(
        "signed; publish to bring it to the server, and give it the roots: shoal server init --data DATA --keys DIR"
    )
