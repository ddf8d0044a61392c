"""``shoal keys rotate | revoke | status | sign | discard | publish``: changes of keys, by one person or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from trainer.plain_errors import plainly
from trainer.publish import guidance
from trainer.publish.change import add_signature, counts_for
from trainer.publish.differences import differences
from trainer.publish.errors import SignaturesMissing, SigningKeyError
from trainer.publish.image_signing import ImageSigning
from trainer.publish.key_uses import KeyUse, in_role, named_key
from trainer.publish.keys import KeyFolder
from trainer.publish.options import ASK, DRY_RUN, FOLDER, KIND, MAY_WAIT, PASSPHRASE_FILE, opened
from trainer.publish.pending import (
    PENDING_FILE,
    PendingChange,
    merge,
    read_pending,
    read_pending_file,
    requirement,
    requirements,
    write_pending,
)
from trainer.publish.proposals import signatures_of
from trainer.publish.public_key import read_public
from trainer.publish.rotation import keep_releases, replace_keys
from trainer.publish.settling import discard


@click.command()
@FOLDER
@click.argument("role")
@click.option("--key", help="Which of the role's keys; all unless given (of a model: the publisher's).")
@click.option(
    "--public", type=click.Path(path_type=Path, dir_okay=False), help="The new key, made elsewhere: `shoal keys make`."
)
@KIND
@DRY_RUN
@MAY_WAIT
@ASK
@PASSPHRASE_FILE
@plainly
def rotate(folder: Path, role: str, *, key: str | None, **more: Any) -> None:
    """Replace the keys of ROLE by new ones: root, targets, snapshot, timestamp, a MODEL, director, director-root.

    Needs the keys that vouch for the role: the root's, for a model the targets keys, for the director its root's.
    """
    _replace(folder, f"rotate {role}", lambda signing: in_role(signing.store, role, key), more)


@click.command()
@FOLDER
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--no-successor", is_flag=True, help="Nobody takes the place, where enough keys are left.")
@click.option(
    "--keep", multiple=True, metavar="VERSION", help="Of a model: only these versions stay signed; repeatedly."
)
@click.option("--drop", multiple=True, metavar="VERSION", help="Of a model: these versions are signed no longer.")
@KIND
@DRY_RUN
@MAY_WAIT
@ASK
@PASSPHRASE_FILE
@plainly
def revoke(folder: Path, names: tuple[str, ...], *, keep: tuple[str, ...], drop: tuple[str, ...], **more: Any) -> None:
    """Let nobody believe the key NAME any more: it was lost or stolen. NAME as `shoal keys show` has it, or a part.

    `anna` means all keys of that person; several names are one change. What a model's key has signed is signed anew
    with the new one, as far as it is kept; unless --keep or --drop says otherwise, all that is listed here is.
    """

    def find(signing: ImageSigning) -> list[KeyUse]:
        found = [use for name in names for use in named_key(signing.store, name)]
        return list(dict.fromkeys(found))

    _replace(folder, f"revoke {', '.join(names)}", find, more, keep=keep, drop=drop, stolen=True)


def _replace(
    folder: Path,
    what: str,
    find: Callable[[ImageSigning], list[KeyUse]],
    more: dict[str, Any],
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    stolen: bool = False,
) -> None:
    keys = opened(folder, more)
    with keys.alone():
        signing = ImageSigning(keys)
        signing.settle()
        change = signing.change(may_wait=bool(more["may_wait"]))
        public = more.get("public")
        replaced = replace_keys(
            change,
            find(signing),
            kind=more["kind"],
            successor=not more.get("no_successor", False),
            public=read_public(public) if public is not None else None,
        )
        versions = _choose(signing, change, (use.role for one in replaced for use in one.uses), keep, drop)
        needed = change.sign(what)
        for line in [*guidance.plan(replaced, change.pending, needed, folder), *versions]:
            click.echo(line)
        in_force = not any(one.missing for one in needed)
        if not more["dry_run"]:
            change.save()
            in_force = signing.settle() is not None
    words = "It would be in force here." if more["dry_run"] else "In force here."
    click.echo(
        f"\n{words if in_force else 'Signatures are missing.'} What to do {'then' if more['dry_run'] else 'now'}:"
    )
    for step in guidance.after(replaced, folder, in_force=in_force, stolen=stolen):
        click.echo(f"- {step}")
    if more["dry_run"]:
        click.echo("dry run: nothing was changed")


def _choose(
    signing: ImageSigning, change: Any, roles: Iterable[str], keep: Sequence[str], drop: Sequence[str]
) -> list[str]:
    models = sorted(set(roles) & set(signing.models()))
    if (keep or drop) and len(models) != 1:
        raise SigningKeyError(f"--keep and --drop are for the key of one model; named are {len(models)}")
    lines = []
    for model in models:
        kept, dropped = keep_releases(change, model, keep=keep, drop=drop)
        lines.append(
            f"releases  {model}: stay signed: {', '.join(kept) or 'none'}; no longer: {', '.join(dropped) or 'none'}"
        )
    return lines


@click.command()
@FOLDER
@plainly
def status(folder: Path) -> None:
    """Show what waits for signatures, how many are missing and by whom."""
    keys = KeyFolder.from_environment(folder)
    signing = ImageSigning(keys)
    change = read_pending(folder)
    for line in _pending_lines(change, signing) if change is not None else ["no change of keys waits"]:
        click.echo(line)
    for line in _waiting_lines(signing):
        click.echo(line)


def _pending_lines(change: PendingChange, signing: ImageSigning) -> list[str]:
    needed = requirements(change, signing.store)
    lines = [f"pending   {what}" for what in change.what]
    lines += [f"changes   {line}" for line in differences(change, signing.store)]
    lines += [f"needs     {one.text()}" for one in needed]
    missing = any(one.missing for one in needed)
    rest = f"not in force before these have signed: shoal keys sign {signing.store.folder} --key FILE" if missing else (
        "complete: in force with the publisher's next command, where snapshot and timestamp keys are"
    )  # fmt: skip
    return [*lines, rest]


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
@click.option(
    "--key",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A person's key, or the folder with that person's keys; may be given repeatedly.",
)
@click.option("--from", "others", multiple=True, type=click.Path(path_type=Path), help="Another copy of pending.json.")
@click.option("--yes", is_flag=True, help="Do not ask whether that is what should be signed.")
@PASSPHRASE_FILE
@plainly
def sign(folder: Path, *, files: tuple[Path, ...], others: tuple[Path, ...], yes: bool, **more: Any) -> None:
    """Add a person's signature to the change that waits in DIR, or the signatures in other copies of it.

    DIR needs no private key: image/, director/ and pending.json of the folder are enough. Give pending.json back then.
    """
    keys = opened(folder, {"ask": False, **more})
    with keys.alone():
        signing = ImageSigning(keys)
        change = read_pending(folder)
        if change is None:
            raise SigningKeyError(f"{folder}: no change waits; see `shoal keys status`")
        if not files and not others:
            raise SigningKeyError(
                "nothing to sign with: give --key FILE, or --from the pending.json that others signed"
            )
        for other in others:
            click.echo(f"took {merge(change, _other_copy(other), signing.store)} signatures from {other}")
        if files:
            _sign_with(keys, _key_files(files), change, signing, ask=not yes)
        write_pending(folder, change)
        in_force = signing.settle() is not None
        click.echo("in force" if in_force else "\n".join(_pending_lines(change, signing)))


def _sign_with(
    keys: KeyFolder, paths: Sequence[Path], change: PendingChange, signing: ImageSigning, *, ask: bool
) -> None:
    signers = {path: keys.read(path, str(path)) for path in paths}
    useful = [path for path, one in signers.items() if counts_for(change, signing.store, one.public_key.keyid)]
    if not useful:
        names = ", ".join(map(str, paths)) or "no key"
        raise SigningKeyError(f"{names}: of no use to this change; see `shoal keys status`")
    for line in differences(change, signing.store):
        click.echo(f"changes   {line}")
    if ask:  # where nobody is there to answer, nothing is signed
        click.confirm("Sign this? (--yes signs without asking)", abort=True)
    for path in useful:
        for file in add_signature(change, signing.store, signers[path]) or ["nothing more: it had signed already"]:
            click.echo(f"signed {file} with {path}")


def _may_be_in_force(folder: Path, signing: ImageSigning) -> bool:
    """Whether the change that waits can be judged at all: what cannot be was never put in force, not even half."""
    try:
        change = read_pending(folder)
        return change is not None and not any(one.missing for one in requirements(change, signing.store))
    except SigningKeyError:
        return False


def _other_copy(path: Path) -> PendingChange:
    file = path / PENDING_FILE if path.is_dir() else path
    found = read_pending_file(file)
    if found is None:
        raise SigningKeyError(f"{file}: there is no such file")
    return found


def _key_files(given: Iterable[Path]) -> list[Path]:
    """Of a folder those keys in it; which of them count is told by the change."""
    return [file for path in given for file in (sorted(path.glob("*.pem")) if path.is_dir() else [path])]


@click.command("discard")
@FOLDER
@plainly
def discard_command(folder: Path) -> None:
    """Forget the change that waits for signatures, and the new keys that it would have brought."""
    keys = KeyFolder.from_environment(folder)
    with keys.alone():
        signing = ImageSigning(keys)
        if _may_be_in_force(folder, signing) and signing.settle() is not None:
            click.echo("it had all its signatures, and is in force")
            return
        change = discard(keys)
    click.echo(f"discarded: {'; '.join(change.what)}" if change is not None else "no change waits")


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
    waits = [*(_pending_lines(change, signing) if change is not None else []), *_waiting_lines(signing)]
    for line in waits or ["published; nothing waits"]:
        click.echo(line)
    if waits:
        raise SignaturesMissing("what has its signatures is published; what stands above waits for those it lacks")


change_commands = [rotate, revoke, status, sign, discard_command, publish]
