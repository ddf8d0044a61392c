"""``shoal models approvals | approve | reject``, and how other commands show releases that wait for a signature."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_agent.contract.errors import ConfigurationError, DigestMismatch
from edge_agent.contract.manifest import EVALUATION_FILE, MANIFEST_FILE, decode_manifest, digest_of
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_fields, show_json, show_table
from fleet_server.updates import approving

if TYPE_CHECKING:
    from fleet_server.updates.proposal import Proposal

_ROOT_FILE = "root.json"


@click.command("approvals")
@as_json
@connects
def list_approvals(rest: Rest, *, json_: bool) -> None:
    """List the releases that wait for an approver's signature, and those that were refused."""
    found = rest.get("approvals")
    if json_:
        show_json(found)
        return
    rows = [
        (
            one["model"],
            one["version"],
            one["package"][:12] or "-",
            one["state"],
            f"{one['missing']} of {one['threshold']}" if one["state"] == "waiting" else "-",
            approving.persons(one["signed"]),
            approving.still_needed(one["missing"], one["unsigned"]) or "-",
            ago(one["proposed_at_ms"]),
            one["reason"],
        )
        for one in found
    ]
    headings = ("model", "version", "package", "state", "missing", "signed by", "needed", "since", "reason")
    show_table(headings, rows, empty="nothing waits for approval")
    show_waiting([one for one in found if one["state"] == "waiting"])


def waiting(rest: Rest, model: str = "") -> list[dict[str, Any]]:
    """The releases that wait for approval, of one model or of all."""
    found = [one for one in rest.get("approvals") if one["state"] == "waiting"]
    return [one for one in found if model in ("", one["model"])]


def show_waiting(found: Sequence[dict[str, Any]]) -> None:
    """Print of each release that waits who has signed it, who is still needed, and what they type."""
    for one in found:
        what = f"{one['model']} {one['version']}"
        if not one["package"]:
            what += " (what is released, signed for another lifetime)"
        needed = approving.still_needed(one["missing"], one["unsigned"])
        if one["reason"]:
            click.echo(f"\n{what} waits: {one['reason']}")
        elif not needed:
            click.echo(f"\n{what} has all its signatures; the publisher makes it visible within the hour")
        else:
            signed = approving.persons(one["signed"])
            click.echo(f"\n{what} waits for approval since {ago(one['proposed_at_ms'])}")
            click.echo(f"  signed by {signed}; still needed: {needed}")
            for command in approving.commands(one["model"], one["version"], one["missing"], one["unsigned"]):
                click.echo(f"  {command}")


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
    from fleet_server.updates.proposal import RENEWAL

    key, where = options["key"], f"approvals/{part(model)}/{part(version)}"
    root = _root(options["root"] or key.parent / _ROOT_FILE)
    found = rest.get(where)
    if found["state"] != "waiting":
        raise ConfigurationError(f"{model} {version} was refused: {found['reason']}")
    proposal = _verified(found, root)
    if (proposal.model, proposal.version) != (model, version):
        raise ConfigurationError(
            f"the server gave {proposal.model} {proposal.version} to be signed, not {model} {version}; none is signed"
        )
    if proposal.version != RENEWAL:
        _show(rest, where, proposal)
    else:
        click.echo(f"{model}: nothing is released; what is signed already is signed for another lifetime")
    if not options["yes"]:  # where nobody is there to answer, nothing is signed
        click.confirm(f"Sign {model} {version}? (--yes signs without asking)", abort=True)
    answer = rest.post(f"{where}/signatures", {"signatures": _signed(proposal, key, options["passphrase_file"])})
    left = answer["missing"]
    click.echo(
        f"signed; {left} signatures are still missing"
        if left
        else "signed; the publisher makes it visible within the hour"
    )


@click.command("reject")
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@connects
def reject(rest: Rest, model: str, version: str, reason: str) -> None:
    """Refuse a release that still lacks a signature: the publisher drops it."""
    rest.post(f"approvals/{part(model)}/{part(version)}/reject", {"reason": reason})
    click.echo(f"{model} {version} is refused")


def _root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}; give the root that you trust with --root: image/1.root.json of the key folder"
        ) from error


def _verified(found: dict[str, Any], root: bytes) -> Proposal:
    """What is to be signed, held against metadata verified here: the server is not believed."""
    from fleet_server.updates.image_verification import verify_shown
    from fleet_server.updates.proposal import Proposal, check_proposal

    now = dt.datetime.now(dt.UTC)
    shown = {name: text.encode() for name, text in found["shown"].items()}
    roles = verify_shown(shown.get, root=root, now=now)
    return check_proposal(msgspec.convert(found["proposal"], Proposal), roles, now)[0]


def _show(rest: Rest, where: str, proposal: Proposal) -> None:
    manifest_bytes = rest.get_bytes(f"{where}/files/{MANIFEST_FILE}")
    if digest_of(manifest_bytes) != proposal.package:
        raise DigestMismatch(MANIFEST_FILE, expected=proposal.package, actual=digest_of(manifest_bytes))
    manifest = decode_manifest(manifest_bytes)
    lineage = manifest.lineage
    show_fields(
        [
            ("model", f"{manifest.name} {manifest.version}"),
            ("package", proposal.package),
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


def _signed(proposal: Proposal, key: Path, passphrase_file: Path | None) -> dict[str, dict[str, str]]:
    from fleet_server.updates.approver_key import read_key
    from fleet_server.updates.proposal import payloads

    signer = read_key(key, lambda: _passphrase(key, passphrase_file))
    signed = {role: signer.sign(payload) for role, payload in payloads(proposal).items()}
    return {role: {one.keyid: one.signature} for role, one in signed.items()}


def _passphrase(key: Path, file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text().splitlines()[0]
        except (OSError, IndexError) as error:
            raise ConfigurationError(f"{file}: holds no passphrase: {error}") from error
    given = os.environ.get("SHOAL_KEYS_PASSPHRASE")
    return given or str(click.prompt(f"Passphrase of {key}", hide_input=True, err=True))


approval_commands = (list_approvals, approve, reject)
