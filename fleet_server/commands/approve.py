"""``shoal models approve``: what an approver sees of a release that waits, all of it verified on this machine."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_agent.contract.errors import ConfigurationError, DigestMismatch, TrustError
from edge_agent.contract.manifest import EVALUATION_FILE, MANIFEST_FILE, decode_manifest, digest_of
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import show_fields, show_json
from fleet_server.updates import approving

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import VerificationResult

    from fleet_server.updates.proposal import Proposal

_ROOT_FILE = "root.json"
_PASSPHRASE = "SHOAL_KEYS_PASSPHRASE"  # noqa: S105 - the name of a variable
_SHOWN_DIGITS = 12


@click.command("approve")
@click.argument("model")
@click.argument("version")
@click.option("--key", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Your private key.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Root of the image repository that you trust.  [default: root.json beside the key]",
)
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path, dir_okay=False), help="Its first line opens the key."
)
@click.option("--yes", is_flag=True, help="Do not ask whether that is what should be signed.")
@connects
def approve(rest: Rest, /, model: str, version: str, **options: Any) -> None:
    """Look at a release that waits, sign it with your key, and send the signature back.

    What is shown is verified on this machine, from a root of your own: that it adds this one version and nothing else,
    and that its evaluation is the one that the signed package holds. The key stays here.
    """
    from fleet_server.updates.proposal import RENEWAL, valid_until

    key, where = options["key"], f"approvals/{part(model)}/{part(version)}"
    root = options["root"] or key.parent / _ROOT_FILE
    if not key.exists():
        raise ConfigurationError(f"{key}: there is no such file; give your private key with --key")
    _check_root(root)
    signer = _key(key, options["passphrase_file"])
    found = rest.get(where)
    if found["state"] != "waiting":
        raise ConfigurationError(f"{model} {version} was refused: {found['reason']}")
    proposal, signatures = _verified(found, root)
    if (proposal.model, proposal.version) != (model, version):
        raise ConfigurationError(
            f"the server gave {proposal.model} {proposal.version} to be signed, not {model} {version}; none is signed"
        )
    _check_key(key, signer.public_key.keyid, proposal, signatures)
    if proposal.version != RENEWAL:
        _show(rest, where, proposal)
    else:
        until = f"{valid_until(proposal):%Y-%m-%d}"
        click.echo(f"{model}: nothing is released; what is signed already is signed anew, until {until}")
    if not options["yes"]:  # where nobody is there to answer, nothing is signed
        click.confirm(f"Sign {model} {version}? (--yes signs without asking)", abort=True)
    answer = rest.post(f"{where}/signatures", {"signatures": _signed(proposal, signer)})
    left = answer["missing"]
    click.echo(f"signed; {left} signatures are still missing" if left else f"signed; {approving.PUBLISHER}")


def _check_root(path: Path) -> None:
    """See that it is a root at all, before anything is shown; whether it is the right one, the metadata tells."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    advice = "give the root that you trust with --root: image/1.root.json of the key folder"
    try:
        signed = Metadata[Root].from_bytes(path.read_bytes()).signed
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; {advice}") from error
    except RepositoryError as error:
        raise ConfigurationError(f"{path}: holds no root, but something else ({error}); {advice}") from error
    if not isinstance(signed, Root):
        raise ConfigurationError(f"{path}: holds {signed.type}, no root; {advice}")


def _verified(found: dict[str, Any], root: Path) -> tuple[Proposal, dict[str, VerificationResult]]:
    """What is to be signed and who has, held against metadata verified here: the server is not believed."""
    from tuf.api.exceptions import ExpiredMetadataError

    from fleet_server.updates.errors import UploadRefused
    from fleet_server.updates.image_verification import verify_shown
    from fleet_server.updates.proposal import Proposal, check_proposal

    now = dt.datetime.now(dt.UTC)
    shown = {name: text.encode() for name, text in found["shown"].items()}
    try:
        roles = verify_shown(shown.get, root=root.read_bytes(), now=now)
    except UploadRefused as error:
        if isinstance(error.__cause__, ExpiredMetadataError):
            raise TrustError(
                f"{error}, at {now:%Y-%m-%d %H:%M} UTC by this machine's clock; nothing is signed. If that is right, "
                "let it be signed anew (`shoal keys publish`; root and targets: `shoal keys renew` first), then approve"
            ) from error
        raise TrustError(
            f"{error}; judged by {_described(root)}; nothing is signed. Either that is not the image root of this "
            "server's fleet (--root; the director's is another one), or what the server gives is not signed by the "
            "fleet's keys: then do not approve, and tell who holds the root keys"
        ) from error
    try:
        return check_proposal(msgspec.convert(found["proposal"], Proposal), roles, now)
    except UploadRefused as error:
        raise TrustError(
            f"{error}; nothing is signed. If it has expired or another release came before it, the publisher's next "
            "`shoal keys publish` proposes it anew; anything else is a reason to refuse it: `shoal models reject`"
        ) from error


def _described(root: Path) -> str:
    from tuf.api.metadata import Metadata, Root

    signed = Metadata[Root].from_bytes(root.read_bytes()).signed
    keys = ", ".join(sorted(keyid[:_SHOWN_DIGITS] for keyid in signed.roles[Root.type].keyids))
    return f"{root} (version {signed.version}, keys {keys})"


def _check_key(path: Path, keyid: str, proposal: Proposal, results: dict[str, VerificationResult]) -> None:
    """Whether its signature is asked for, told before anybody reads the evaluation.

    Raises:
        ConfigurationError: It has signed already, or may not.
    """
    from fleet_server.updates.proposal import signer_names

    what, lacking = f"{proposal.model} {proposal.version}", [one for one in results.values() if not one.verified]
    if any(keyid in one.unsigned for one in lacking):
        return
    waits = {key.keyid: key for one in lacking for key in one.unsigned.values()}
    wanted = ", ".join(
        f"{signer_names({one: key}, proposal.model)[0]} ({one[:_SHOWN_DIGITS]})" for one, key in waits.items()
    )
    known = {one: key for result in results.values() for one, key in result.signed.items()}
    if keyid in known:
        name = signer_names({keyid: known[keyid]}, proposal.model)[0]
        raise ConfigurationError(
            f"{path}: as {name} it has signed {what} already; still waited for: {wanted or 'nobody'}"
        )
    raise ConfigurationError(
        f"{path}: this key ({keyid[:_SHOWN_DIGITS]}) is not one that is missing on {what}: that waits for "
        f"{wanted or 'nobody'}; give such a key with --key. If yours was replaced, use the new one"
    )


def _show(rest: Rest, where: str, proposal: Proposal) -> None:
    from fleet_server.updates.proposal import valid_until

    manifest_bytes = rest.get_bytes(f"{where}/files/{MANIFEST_FILE}")
    if digest_of(manifest_bytes) != proposal.package:
        raise DigestMismatch(MANIFEST_FILE, expected=proposal.package, actual=digest_of(manifest_bytes))
    manifest = decode_manifest(manifest_bytes)
    lineage = manifest.lineage
    show_fields(
        [
            ("model", f"{manifest.name} {manifest.version}"),
            ("package", proposal.package),
            ("signed until", f"{valid_until(proposal):%Y-%m-%d}"),
            ("parent", manifest.parent),
            ("size", f"{manifest.size_bytes} bytes"),
            ("trained", f"{lineage.trained_at}, run {lineage.run}, seed {lineage.seed}"),
            ("dataset", lineage.dataset),
        ]
    )
    entry = manifest.files.get(EVALUATION_FILE)
    if entry is None:
        click.echo("\nit has no evaluation")
        return
    data = rest.get_bytes(f"{where}/files/{EVALUATION_FILE}")
    if digest_of(data) != entry.sha256:
        raise DigestMismatch(EVALUATION_FILE, expected=entry.sha256, actual=digest_of(data))
    click.echo("\nevaluation")
    show_json(msgspec.json.decode(data))


def _signed(proposal: Proposal, signer: CryptoSigner) -> dict[str, dict[str, str]]:
    from fleet_server.updates.proposal import payloads

    signed = {role: signer.sign(payload) for role, payload in payloads(proposal).items()}
    return {role: {one.keyid: one.signature} for role, one in signed.items()}


def _key(path: Path, passphrase_file: Path | None) -> CryptoSigner:
    from fleet_server.updates.approver_key import is_encrypted, read_key

    signer = read_key(path, lambda: _passphrase(path, passphrase_file))
    if not is_encrypted(path):
        click.echo(
            f"warning: {path} is not encrypted: whoever copies it approves in your name; `shoal keys encrypt {path}`",
            err=True,
        )
    return signer


def _passphrase(key: Path, file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text().splitlines()[0]
        except (OSError, IndexError) as error:
            raise ConfigurationError(f"{file}: holds no passphrase: {error}") from error
    if given := os.environ.get(_PASSPHRASE):
        return given
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"{key}: is encrypted, and nobody is here to type its passphrase; give --passphrase-file, or set "
            f"{_PASSPHRASE}"
        )
    return str(click.prompt(f"Passphrase of {key}", hide_input=True, err=True))
