"""A release that waits for signatures: what it is, and whether it may follow what the repository shows. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import msgspec
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets, VerificationResult

from edge_agent.contract.names import check_digest, check_name, check_version
from edge_agent.contract.repository import target_name
from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_roles import all_targets, reached

# Stands for a version where nothing new is released: the model's role only needs its signatures for longer.
RENEWAL = "_renewal"
_NAME = "x-shoal-name"


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher has signed and others have yet to sign.

    Args:
        roles: Metadata by role, with the signatures so far: the model's own role, or those of its bins.
        path, length, package: The target: its path, the manifest's length and SHA-256; empty for a renewal.
    """

    model: str
    version: str
    roles: dict[str, str]
    path: str = ""
    length: int = 0
    package: str = ""


def check_proposal(
    proposal: Proposal, shown: Mapping[str, Targets], now: dt.datetime
) -> tuple[Proposal, dict[str, VerificationResult]]:
    """See that a proposal adds exactly what it says to what is shown, and is signed by a key of the model.

    Args:
        shown: The roles in force.
    Returns:
        The proposal without signatures that are not good, and for each role whose signatures it has.
    Raises:
        ManifestError: A name, version or digest of it is none.
        UploadRefused: It is of no such model, not the next version, signed by nobody, or changes something else.
    """
    _check_names(proposal)
    if proposal.model not in shown or not proposal.roles:
        raise UploadRefused(f"model {proposal.model!r} has no key in what is shown; publish its keys first")
    parsed = {name: _parsed(proposal, name, text) for name, text in proposal.roles.items()}
    proposed = {**shown, **{name: metadata.signed for name, metadata in parsed.items()}}
    _check_delegations(proposed)
    results = {}
    for name, metadata in parsed.items():
        if name != proposal.model and not name.startswith(f"{proposal.model}-bins-"):
            raise UploadRefused(f"role {name!r} is not one of {proposal.model}'s")
        known = shown[name].version if name in shown else 0
        if metadata.signed.version != known + 1:
            raise UploadRefused(f"role {name!r}: version {metadata.signed.version} does not follow {known}, shown now")
        if metadata.signed.is_expired(now):
            raise UploadRefused(f"role {name!r} has expired")
        results[name] = _verified(proposed, name, metadata)
        for keyid in set(metadata.signatures) - results[name].signed.keys():
            del metadata.signatures[keyid]
        if not results[name].signed:
            raise UploadRefused(f"role {name!r}: not signed by any key of {proposal.model}")
    _adds_only(proposal, all_targets(shown), all_targets(proposed))
    return msgspec.structs.replace(
        proposal, roles={name: one.to_bytes().decode() for name, one in parsed.items()}
    ), results


def _check_names(proposal: Proposal) -> None:
    check_name(proposal.model, "model")
    if proposal.version != RENEWAL:
        if proposal.path != target_name(proposal.model, check_version(proposal.version)):
            raise UploadRefused(f"{proposal.path!r} is not the path of {proposal.model} {proposal.version}")
        check_digest(proposal.package, proposal.path)
    elif proposal.path or proposal.package or proposal.length:  # nothing signed says so, and people would be shown it
        raise UploadRefused(f"{proposal.model} {RENEWAL}: names a package ({proposal.path!r}), and releases none")


def with_signatures(proposal: Proposal, signatures: Mapping[str, Mapping[str, str]]) -> Proposal:
    """The proposal with further signatures, by role and key identifier; they are checked by :func:`check_proposal`."""
    roles = dict(proposal.roles)
    for name in signatures.keys() & roles.keys():
        metadata = _parsed(proposal, name, roles[name])
        for keyid, signature in signatures[name].items():
            metadata.signatures.setdefault(keyid, Signature(keyid, signature))
        roles[name] = metadata.to_bytes().decode()
    return msgspec.structs.replace(proposal, roles=roles)


def payloads(proposal: Proposal) -> dict[str, bytes]:
    """What is to be signed, by role."""
    return {name: _parsed(proposal, name, text).signed_bytes for name, text in proposal.roles.items()}


def valid_until(proposal: Proposal) -> dt.datetime:
    """Until when the signatures would be believed, those that hold longest."""
    return max(_parsed(proposal, name, text).signed.expires for name, text in proposal.roles.items())


def signer_names(keys: Mapping[str, Key], model: str) -> list[str]:
    """Who these keys belong to, as the signed metadata calls them."""
    return sorted(str(key.unrecognized_fields.get(_NAME) or f"publisher/{model}") for key in keys.values())


def _parsed(proposal: Proposal, name: str, text: str) -> Metadata[Targets]:
    try:
        metadata = Metadata[Targets].from_bytes(text.encode())
    except RepositoryError as error:
        raise UploadRefused(f"{proposal.model} {proposal.version}: role {name!r}: {error}") from error
    if not isinstance(metadata.signed, Targets):
        raise UploadRefused(f"{proposal.model} {proposal.version}: role {name!r} holds {metadata.signed.type}")
    return metadata


def _check_delegations(proposed: Mapping[str, Targets]) -> None:
    def load(role: str, delegator: str) -> Targets:
        if role not in proposed:
            raise UploadRefused(f"the proposal lacks the role {role!r}, to which {delegator!r} delegates")
        return proposed[role]

    reached(load)


def _verified(proposed: Mapping[str, Targets], name: str, metadata: Metadata[Targets]) -> VerificationResult:
    delegator = proposed["targets" if "-bins-" not in name else name.rpartition("-bins-")[0]]
    try:
        return delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
    except ValueError as error:
        raise UploadRefused(f"role {name!r}: {error}") from error


def _adds_only(proposal: Proposal, before: Mapping[str, TargetFile], after: Mapping[str, TargetFile]) -> None:
    wanted = dict(before)
    if proposal.version != RENEWAL:
        if proposal.path in before:
            raise UploadRefused(f"{proposal.path!r} is released already")
        wanted[proposal.path] = TargetFile(proposal.length, {"sha256": proposal.package}, proposal.path)
    if dict(after) != wanted:
        changed = sorted(path for path in before.keys() | after.keys() if wanted.get(path) != after.get(path))
        raise UploadRefused(f"{proposal.model} {proposal.version}: changes more than it says: {', '.join(changed[:5])}")
