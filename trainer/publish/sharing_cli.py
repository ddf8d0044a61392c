"""``shoal keys share | approvers``: from one person's keys to those of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trainer.plain_errors import plainly
from trainer.publish import guidance
from trainer.publish.change import KeyChange
from trainer.publish.differences import differences
from trainer.publish.image_signing import ImageSigning
from trainer.publish.options import (
    ASK,
    DRY_RUN,
    FOLDER,
    KIND,
    MAY_WAIT,
    PASSPHRASE_FILE,
    YES,
    asking,
    joined,
    opened,
    warn_of_unencrypted,
)
from trainer.publish.public_key import read_public
from trainer.publish.sharing import set_approvers, share


@click.command("share")
@FOLDER
@click.option("--person", "persons", multiple=True, required=True, help="Who holds keys from then on; repeatedly.")
@click.option("--threshold", type=click.IntRange(1), required=True, help="How many of them must sign.")
@KIND
@DRY_RUN
@MAY_WAIT
@YES
@ASK
@PASSPHRASE_FILE
@plainly
def share_command(folder: Path, persons: tuple[str, ...], threshold: int, *, kind: str, **more: Any) -> None:
    """Let several persons hold the root and targets keys, of whom THRESHOLD must sign. Needs the keys until now.

    Who holds keys already keeps them; new ones are in DIR/offline/NAME then, and go to their persons. Devices follow.
    """
    _change(
        folder,
        f"share the offline keys among {', '.join(persons)}",
        lambda change: share(change, persons, threshold=threshold, kind=kind),
        more,
    )
    if not more["dry_run"]:
        click.echo(f"give each folder of {folder / 'offline'} to its person, and the roots to the server:")
        click.echo(f"  shoal server init --data DATA --keys {folder}")


@click.command()
@FOLDER
@click.argument("model")
@click.option(
    "--approver", "given", multiple=True, metavar="NAME[=FILE.pub]", help="Who may approve; repeatedly. None: nobody."
)
@click.option("--threshold", type=click.IntRange(1), help="Signatures of a release: 2; without approvers 1.")
@KIND
@DRY_RUN
@MAY_WAIT
@YES
@ASK
@PASSPHRASE_FILE
@plainly
def approvers(folder: Path, model: str, *, given: tuple[str, ...], kind: str, **more: Any) -> None:
    """Choose whose signature the releases of MODEL need besides the publisher's. Needs the targets keys."""
    people = read_approvers(given)
    _change(
        folder,
        f"approvers of {model}: {', '.join(people) or 'nobody'}",
        lambda change: set_approvers(change, model, people, threshold=more["threshold"], kind=kind),
        more,
    )
    for person in people:
        if (folder / "approvers" / person / "approver.pem").exists():
            click.echo(f"give {folder / 'approvers' / person} to {person}, then remove the key here")


def read_approvers(given: tuple[str, ...]) -> dict[str, Any]:
    """The persons of ``--approver NAME[=FILE.pub]``, with the public keys of those who made one."""
    split = (one.partition("=") for one in given)
    return {person: read_public(Path(file)) if file else None for person, _, file in split}


def _change(folder: Path, what: str, draft: Callable[[KeyChange], None], more: dict[str, Any]) -> None:
    keys = opened(folder, more)
    with keys.alone():
        signing = ImageSigning(keys)
        signing.settle()
        change = signing.change(may_wait=bool(more["may_wait"]), joins=asking(more))
        draft(change)
        needed = change.sign(what)
        for line in differences(change.pending, signing.store):
            click.echo(f"changes   {line}")
        for line in guidance.needs(needed):
            click.echo(line)
        if more["dry_run"]:
            if change.waited:
                joined(change.waited, change.lost)
            click.echo("dry run: nothing was changed")
            return
        change.save()
        in_force = signing.settle() is not None
    warn_of_unencrypted(folder)
    click.echo("in force here; publish it: shoal keys publish" if in_force else f"wait: shoal keys status {folder}")


sharing_commands = [share_command, approvers]
