"""Options that the commands about keys share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trainer.publish.keys import KeyFolder
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


def opened(folder: Path, more: Mapping[str, Any]) -> KeyFolder:
    """The key folder, with the passphrases that the options ``--ask`` and ``--passphrase-file`` give."""
    return KeyFolder.from_environment(folder, ask=chosen(more["passphrase_file"], prompt=more["ask"]))
