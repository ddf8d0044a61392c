"""``shoal keys status | publish``: what waits for signatures, whose, and the command that gives them."""

from __future__ import annotations

from pathlib import Path

import click

from edge_agent.contract.printable import printable
from trainer.plain_errors import plainly
from trainer.publish import guidance
from trainer.publish.differences import differences
from trainer.publish.errors import SignaturesMissing
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.options import FOLDER
from trainer.publish.pending import PENDING_FILE, PendingChange, read_pending, requirement, requirements
from trainer.publish.proposals import signatures_of


@click.command()
@FOLDER
@plainly
def status(folder: Path) -> None:
    """Show what waits for signatures, how many are missing and by whom."""
    keys = KeyFolder.from_environment(folder)
    signing = ImageSigning(keys)
    change = read_pending(folder)
    for line in pending_lines(change, signing) if change is not None else ["no change of keys waits"]:
        click.echo(line)
    for line in _waiting_lines(signing):
        click.echo(line)


def pending_lines(change: PendingChange, signing: ImageSigning) -> list[str]:
    """A change of keys, for whoever may sign it: what it changes, and whose signatures it lacks."""
    lines = [f"pending   {printable(what)}" for what in change.what]
    lines += [f"changes   {line}" for line in differences(change, signing.store)]
    return [*lines, *needs_lines(change, signing)]


def needs_lines(change: PendingChange, signing: ImageSigning) -> list[str]:
    """The signatures that a change has and lacks, and what to do for it to come into force."""
    needed = requirements(change, signing.store)
    missing = any(one.missing for one in needed)
    rest = f"not in force before these have signed: shoal keys sign {signing.store.folder} --key FILE" if missing else (
        "complete: in force with the publisher's next command, where snapshot and timestamp keys are; if that is "
        f"elsewhere, give {signing.store.folder / PENDING_FILE} back there"
    )  # fmt: skip
    return [*guidance.needs(needed), rest]


def _waiting_lines(signing: ImageSigning) -> list[str]:
    """The releases that nobody has approved yet: whose signatures each lacks, and the command that gives them."""
    lines, roles = [], signing.store.roles()
    for one in signing.releases.waiting.all():
        # A model in bins may wait with hundreds of roles, which all ask for the same signatures.
        role, worst = max(signatures_of(one, roles).items(), key=lambda item: item[1].missing)
        needed = requirement(role, one.model, worst, default=f"publisher/{one.model}")
        lines.append(f"waits     {one.model} {one.version}: {needed.text()}")
        lines.append(f"          approve it: shoal models approve {one.model} {one.version} --key FILE")
    return lines


@click.command()
@FOLDER
@click.option("--server", envvar="SHOAL_SERVER", required=True, show_envvar=True, help="Base URL of the fleet server.")
@click.option("--token", envvar="SHOAL_TOKEN", required=True, show_envvar=True, help="A token of role trainer.")
@plainly
def publish(folder: Path, server: str, token: str) -> None:
    """Bring what is signed to the server, and fetch approvals that releases wait for. Needs the publisher's keys.

    Exit status 9: what is signed is on the server, but a change of keys or a release still lacks signatures.
    """
    from trainer.publish.repository import Publisher

    with Publisher(folder, server, token) as publisher:
        publisher.refresh()
    signing = ImageSigning(KeyFolder.from_environment(folder))
    change = read_pending(folder)
    waits = [*(pending_lines(change, signing) if change is not None else []), *_waiting_lines(signing)]
    for line in waits or ["published; nothing waits"]:
        click.echo(line)
    if waits:
        raise SignaturesMissing("what has its signatures is published; what stands above waits for those it lacks")
