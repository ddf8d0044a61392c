"""``shoal keys``: make, show and renew the keys that a fleet trusts; changes of keys are in ``change_cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trainer.plain_errors import plainly
from trainer.publish.change_cli import change_commands
from trainer.publish.errors import SigningKeyError
from trainer.publish.image_signing import ImageSigning, Lifetimes
from trainer.publish.key_uses import uses
from trainer.publish.keys import KeyFolder, encoded, generate, is_encrypted
from trainer.publish.options import (
    ASK,
    FOLDER,
    KIND,
    MAY_WAIT,
    PASSPHRASE_FILE,
    YES,
    asking,
    key_files,
    opened,
    warn_of_key,
    warn_of_unencrypted,
)
from trainer.publish.passphrases import chosen
from trainer.publish.public_key import SUFFIX, write_public
from trainer.publish.sharing_cli import read_approvers, sharing_commands


@click.group("keys")
def keys_commands() -> None:
    """Make, show, replace and renew the signing keys of a fleet.

    The image repository's keys say which models exist; the director's key, on the server, says which device runs which.
    Set SHOAL_KEYS_PASSPHRASE to keep private keys encrypted. A change that lacks signatures waits: `shoal keys status`.
    """


for _command in (*change_commands, *sharing_commands):
    keys_commands.add_command(_command)


@keys_commands.command()
@FOLDER
@click.option("--model", "models", multiple=True, help="A model that gets a key of its own; may be given repeatedly.")
@click.option("--keys", "count", type=click.IntRange(1, 16), default=1, help="Root and targets keys, each a person's.")
@click.option("--threshold", type=click.IntRange(1), default=1, show_default=True, help="Of these, how many must sign.")
@click.option("--person", "persons", multiple=True, help="Who holds a key; may be given repeatedly.")
@KIND
@click.option("--root-days", default=365.0, show_default=True, help="Lifetime of the roots.")
@click.option("--targets-days", default=90.0, show_default=True, help="Lifetime of the targets roles.")
@click.option("--snapshot-days", default=7.0, show_default=True, help="Lifetime of snapshot and timestamp.")
@ASK
@PASSPHRASE_FILE
@plainly
def init(folder: Path, models: tuple[str, ...], count: int, threshold: int, kind: str, **more: Any) -> None:
    """Make all keys in DIR and sign an image repository without packages.

    For production: --threshold 2 --keys 3, or --threshold 2 --person anna --person ben --person carla. Each person's
    keys are in a folder of their own, DIR/offline/NAME, which goes to that person and is then removed.

    Then take DIR/offline to a safe place, and give the server its part: shoal server init --data DATA --keys DIR
    """
    lifetimes = Lifetimes(root=more["root_days"], targets=more["targets_days"], snapshot=more["snapshot_days"])
    persons = more["persons"] or tuple(f"person-{number}" for number in range(1, count + 1) if count > 1)
    keys = KeyFolder.from_environment(folder, ask=chosen(more["passphrase_file"], prompt=more["ask"]))
    signing = ImageSigning(keys, lifetimes=lifetimes)
    signing.create(models, kind=kind, persons=persons or ("",), threshold=threshold)
    if not persons:
        click.echo(f"made the keys of a fleet in {folder}; take {folder / 'offline'} to a safe place")
        return
    click.echo(f"made the keys of a fleet in {folder}; {threshold} of {len(persons)} persons sign roots and targets:")
    for person in persons:
        click.echo(f"  give {folder / 'offline' / person} to {person}, then remove it here")
    warn_of_unencrypted(folder)


@keys_commands.command()
@FOLDER
@plainly
def show(folder: Path) -> None:
    """Show which keys are in DIR, what they have signed and when that expires."""
    signing = ImageSigning(KeyFolder.from_environment(folder))
    here = KeyFolder.from_environment(folder).names()
    for name in here:
        click.echo(f"key      {name}")
    away = {use.name for use in uses(signing.store)} - set(here) if signing.store.timestamp() is not None else set()
    for name in sorted(away):
        click.echo(f"away     {name}")
    for model, packages in signing.models().items():
        click.echo(f"model    {model}: {len(packages)} packages signed{', last ' + packages[-1] if packages else ''}")
    for role, expires in sorted(signing.expiries().items()):
        click.echo(f"expires  {expires:%Y-%m-%d %H:%M} UTC  {role}")


@keys_commands.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@KIND
@ASK
@PASSPHRASE_FILE
@plainly
def make(file: Path, kind: str, *, ask: bool, passphrase_file: Path | None) -> None:
    """Make a key in FILE (PEM) that never leaves this machine, and FILE.pub to give away.

    `shoal keys rotate --public` and `shoal keys add-model --approver NAME=FILE.pub` take it.
    """
    from edge_agent.durable import write_durably

    if file.exists():
        raise SigningKeyError(f"{file}: there is a key already; keep it, or choose another name")
    passphrases = chosen(passphrase_file, prompt=ask)
    signer = generate(kind)
    write_durably(file, encoded(signer, passphrases(f"{file}", True) if passphrases else None), mode=0o600)
    write_public(file.with_name(file.name + SUFFIX), signer.public_key)
    click.echo(f"keep {file}, and give away {file}{SUFFIX}")
    warn_of_key(file)


@keys_commands.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@PASSPHRASE_FILE
@plainly
def encrypt(files: tuple[Path, ...], *, passphrase_file: Path | None) -> None:
    """Put a passphrase on keys that have none, each in its place; FILE is a key, or the folder of a person's keys."""
    from edge_agent.durable import write_durably

    keys, passphrases = KeyFolder(Path()), chosen(passphrase_file, prompt=True)
    found = key_files(files)
    clear = [file for file in found if not is_encrypted(file)]
    if not clear:
        raise SigningKeyError(f"{', '.join(map(str, found))}: has a passphrase already; it stays as it is")
    for file in clear:  # of a folder those that are left, where an earlier attempt was broken off
        signer = keys.read(file, str(file))
        write_durably(file, encoded(signer, passphrases(str(file), True) if passphrases else None), mode=0o600)
        click.echo(f"encrypted {file}; other copies of it are not")


@keys_commands.command("add-model")
@FOLDER
@click.argument("model")
@click.option(
    "--approver",
    "approvers",
    multiple=True,
    metavar="NAME[=FILE.pub]",
    help="Who may approve its releases; repeatedly.",
)
@click.option("--threshold", type=click.IntRange(1), help="Signatures of a release: 1; with approvers 2.")
@KIND
@MAY_WAIT
@YES
@ASK
@PASSPHRASE_FILE
@plainly
def add_model(folder: Path, model: str, *, kind: str, may_wait: bool, **more: Any) -> None:
    """Make a key for MODEL. Needs the keys of the targets role, by default DIR/offline/image-targets.pem.

    With --approver a release is signed by the publisher and waits until one of these persons has signed it, too:
    `shoal models approve`.
    """
    people = read_approvers(more["approvers"])
    keys = opened(folder, more)
    with keys.alone():
        signing = ImageSigning(keys)
        done = signing.add_model(
            model,
            kind=kind,
            approvers=people,
            threshold=more["threshold"],
            may_wait=may_wait,
            joins=asking(more),
        )
    click.echo(f"packages of {model} are signed with {folder / 'publisher' / (model + '.pem')}")
    for person in people:
        if (folder / "approvers" / person / "approver.pem").exists():
            click.echo(f"give {folder / 'approvers' / person} to {person}, then remove the key here")
    warn_of_unencrypted(folder)
    if not done:
        click.echo(f"signatures are missing: shoal keys status {folder}")


@keys_commands.command()
@FOLDER
@MAY_WAIT
@YES
@ASK
@PASSPHRASE_FILE
@plainly
def renew(folder: Path, *, may_wait: bool, **more: Any) -> None:
    """Sign roots and targets anew before they expire. Needs DIR/offline."""
    keys = opened(folder, more)
    with keys.alone():
        done = ImageSigning(keys).renew(may_wait=may_wait, joins=asking(more))
    if not done:
        click.echo(f"signatures are missing: shoal keys status {folder}")
        return
    click.echo(
        "signed; publish to bring it to the server, and give it the roots: shoal server init --data DATA --keys DIR"
    )
