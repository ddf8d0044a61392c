"""Options that the commands about keys share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edge_agent.contract.printable import printable
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import KeyFolder, is_encrypted
from trainer.publish.passphrases import chosen

FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
KIND = click.option("--kind", type=click.Choice(["ed25519", "ecdsa"]), default="ed25519", show_default=True)
ASK = click.option("--ask", is_flag=True, help="Ask for a passphrase for each person's new keys.")
PASSPHRASE_FILE = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Its first line is the passphrase of the persons' keys; mode 0600.",
)
MAY_WAIT = click.option("--pending", "may_wait", is_flag=True, help="Write it down for others to sign; no key is here.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would change, for whom; change nothing.")

YES = click.option("--yes", is_flag=True, help="Do not ask before signatures that were given are lost.")


def joined(waited: Sequence[str], lost: Sequence[str]) -> None:
    """Say that a change is made one with those that wait, and what is lost by it."""
    click.echo(f"joined    one change now, signed as one, with what waits already: {printable('; '.join(waited))}")
    for one in lost:
        click.echo(f"lost      {one}: what it was given for is changed; it is needed anew")


def asking(more: Mapping[str, Any]) -> Callable[[Sequence[str], Sequence[str]], None]:
    """Says it, and asks before a signature is lost, unless ``--yes`` was given."""

    def joins(waited: Sequence[str], lost: Sequence[str]) -> None:
        joined(waited, lost)
        if lost and not more["yes"]:  # where nobody is there to answer, all stays as it was
            click.confirm("Lose these signatures? (--yes does so without asking)", abort=True)

    return joins


def opened(folder: Path, more: Mapping[str, Any]) -> KeyFolder:
    """The key folder, with the passphrases that the options ``--ask`` and ``--passphrase-file`` give."""
    return KeyFolder.from_environment(folder, ask=chosen(more["passphrase_file"], prompt=more["ask"]))


def warn_of_unencrypted(folder: Path) -> None:
    """Say which keys of persons lie in a key folder in the clear."""
    if names := KeyFolder(folder).unencrypted():
        click.echo(
            f"warning: not encrypted: {', '.join(names)}: whoever copies them signs in their owners' names. --ask or "
            "--passphrase-file encrypts keys as they are made, `shoal keys encrypt FILE` those that are there",
            err=True,
        )


def warn_of_key(path: Path) -> None:
    """Say that one person's key is in the clear."""
    if not is_encrypted(path):
        click.echo(
            f"warning: {path} is not encrypted: whoever copies it signs in its owner's name; "
            f"`shoal keys encrypt {path}`",
            err=True,
        )


def key_files(given: Iterable[Path]) -> list[Path]:
    """Of a folder the keys in it.

    Raises:
        SigningKeyError: There is no such file or folder, or no key in it.
    """
    found = []
    for path in given:
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path] if path.exists() else []
        if not files:
            what = "holds no key (*.pem)" if path.is_dir() else "there is no such file or folder"
            raise SigningKeyError(f"{path}: {what}; give the key, or the folder that the person got: persons/NAME")
        found += files
    return found
