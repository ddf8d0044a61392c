"""``shoal keys rotate | revoke | sign | discard``: changes of keys, by one person or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from securesystemslib.signer import CryptoSigner

from trainer.plain_errors import plainly
from trainer.publish import guidance
from trainer.publish.change import add_signature, counts_for
from trainer.publish.differences import differences
from trainer.publish.errors import KeyOfAnotherChange, SigningKeyError
from trainer.publish.image_signing import ImageSigning
from trainer.publish.key_uses import KeyUse, in_role, named_key, uses
from trainer.publish.keys import KeyFolder
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
    key_files,
    opened,
    warn_of_key,
    warn_of_unencrypted,
)
from trainer.publish.pending import (
    PENDING_FILE,
    PendingChange,
    keys_that_come,
    keys_then,
    merge,
    metadata_in,
    read_pending,
    read_pending_file,
    requirements,
    write_pending,
)
from trainer.publish.public_key import read_public
from trainer.publish.rotation import keep_releases, replace_keys
from trainer.publish.settling import discard
from trainer.publish.status_cli import needs_lines, pending_lines, publish, status


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
@YES
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
@YES
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
        change = signing.change(may_wait=bool(more["may_wait"]), joins=asking(more))
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
        if more["dry_run"] and change.waited:
            joined(change.waited, change.lost)
        if not more["dry_run"]:
            change.save()
            in_force = signing.settle() is not None
            warn_of_unencrypted(folder)
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
            _sign_with(keys, key_files(files), change, signing, ask=not yes)
        write_pending(folder, change)
        coming = keys_that_come(change, signing.store)
        in_force = signing.settle() is not None
        if not in_force:
            # What it changes was shown before it was signed.
            click.echo("\n".join((needs_lines if files else pending_lines)(change, signing)))
            return
    click.echo("in force here. What to do now:")
    for step in guidance.in_force(change, coming, folder):
        click.echo(f"- {step}")


def _sign_with(
    keys: KeyFolder, paths: Sequence[Path], change: PendingChange, signing: ImageSigning, *, ask: bool
) -> None:
    signers = {path: keys.read(path, str(path)) for path in paths}
    useful = [path for path, one in signers.items() if counts_for(change, signing.store, one.public_key.keyid)]
    if expired := [file for file in change.files if metadata_in(change, file).signed.is_expired()]:
        raise SigningKeyError(
            f"{', '.join(expired)}: has expired while it waited, and no device would take it; `shoal keys discard "
            f"{signing.store.folder}`, then begin anew"
        )
    if not useful:
        raise _of_no_use(signers, change, signing)
    then = {use.keyid for use in keys_then(change, signing.store)}
    for path in useful:
        warn_of_key(path)
        if signers[path].public_key.keyid not in then:
            click.echo(f"note      {path} is taken away by this change: it counts among the keys until now alone")
    for line in differences(change, signing.store):
        click.echo(f"changes   {line}")
    if ask:  # where nobody is there to answer, nothing is signed
        click.confirm("Sign this? (--yes signs without asking)", abort=True)
    for path in useful:
        for file in add_signature(change, signing.store, signers[path]) or ["nothing more: it had signed already"]:
            click.echo(f"signed {file} with {path}")


def _of_no_use(signers: Mapping[Path, CryptoSigner], change: PendingChange, signing: ImageSigning) -> SigningKeyError:
    """What the keys are that were given, and which ones the change waits for."""
    known = {use.keyid: f"{use.name}, of {use.called}" for use in uses(signing.store)}
    ids = {path: one.public_key.keyid for path, one in signers.items()}
    same: dict[str, list[str]] = {}
    for path, keyid in ids.items():
        same.setdefault(known.get(keyid, "a key that nothing in force names"), []).append(f"{path} ({keyid[:12]})")
    given = [f"{', '.join(paths)} {'is' if len(paths) == 1 else 'are each'} {what}" for what, paths in same.items()]
    missing = [one for one in requirements(change, signing.store) if one.missing]
    wanted = ", ".join(dict.fromkeys(name for one in missing for name in one.asked)) or "no further one"
    return SigningKeyError(
        f"{'; '.join(given)}: of no use to this change, which waits for signatures of: {wanted}. Give one of these "
        f"with --key; `shoal keys status {signing.store.folder}` shows the change"
    )


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


def _came_into_force(signing: ImageSigning) -> bool:
    try:
        return signing.settle() is not None
    except KeyOfAnotherChange:
        return False


@click.command("discard")
@FOLDER
@plainly
def discard_command(folder: Path) -> None:
    """Forget the change that waits for signatures, and the new keys that it would have brought."""
    keys = KeyFolder.from_environment(folder)
    with keys.alone():
        signing = ImageSigning(keys)
        if _may_be_in_force(folder, signing) and _came_into_force(signing):
            click.echo("it had all its signatures, and is in force")
            return
        change = discard(keys)
    click.echo(f"discarded: {'; '.join(change.what)}" if change is not None else "no change waits")


change_commands = [rotate, revoke, status, sign, discard_command, publish]
