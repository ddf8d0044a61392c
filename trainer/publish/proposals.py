"""Releases that wait: signed by the publisher, not yet by as many as the model's role asks for. None is shown.

Each is the next version of the model's role with one package more, kept in ``waiting/MODEL/VERSION.json``. When another
one of the model gets ahead of it, it is made anew on top of that, and its approvals with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from securesystemslib.signer import Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets, VerificationResult

from edge_agent.durable import sync_folder, write_durably
from trainer.publish.errors import SigningKeyError
from trainer.publish.hash_bins import model_of

WAITING = "waiting"
# Stands for a version where nothing new is released: the model's role expires soon, and needs its signatures again.
RENEWAL = "_renewal"


class Proposal(msgspec.Struct, kw_only=True):
    """A release that waits for signatures.

    Args:
        version: Of the package; ``_renewal`` where the role is only signed for another lifetime.
        path, length, package: The target: its path, the manifest's length and SHA-256; empty for a renewal.
        roles: Metadata by role: the model's own, or that of its bins.
    """

    model: str
    version: str
    roles: dict[str, str]
    path: str = ""
    length: int = 0
    package: str = ""
    begun: str = ""


class Proposals:
    """The releases that wait in a key folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / WAITING

    def all(self) -> list[Proposal]:
        """All of them, by model and version.

        Raises:
            SigningKeyError: A file is damaged.
        """
        return [self._read(path) for path in sorted(self._folder.glob("*/*.json"))]

    def get(self, model: str, version: str) -> Proposal | None:
        """One, where it waits."""
        path = self._path(model, version)
        return self._read(path) if path.exists() else None

    def put(self, proposal: Proposal) -> None:
        """Keep one."""
        path = self._path(proposal.model, proposal.version)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, msgspec.json.encode(proposal))

    def forget(self, model: str, version: str) -> None:
        """It is released, or refused."""
        path = self._path(model, version)
        if path.exists():
            path.unlink()
            sync_folder(path.parent)

    def _path(self, model: str, version: str) -> Path:
        return self._folder / model / f"{version}.json"

    def _read(self, path: Path) -> Proposal:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Proposal)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SigningKeyError(f"{path}: cannot be read: {error}; remove it and publish again") from error


def signatures_of(proposal: Proposal, roles: Mapping[str, Targets]) -> dict[str, VerificationResult]:
    """For each role of a proposal, whose signatures it has and how many it needs.

    Args:
        roles: Those in force.
    Raises:
        SigningKeyError: It is damaged.
    """
    parsed = {name: metadata_of(text, name) for name, text in proposal.roles.items()}
    found = {}
    for name, metadata in parsed.items():
        model = model_of(name)
        delegator = roles["targets"] if name == model else parsed[model].signed if model in parsed else roles[model]
        found[name] = delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
    return found


def add_signatures(
    proposal: Proposal, roles: Mapping[str, Targets], signatures: Mapping[str, Mapping[str, str]]
) -> int:
    """Take signatures, by role and key identifier; gives how many were good and new."""
    taken = 0
    for role, by_key in signatures.items():
        if role not in proposal.roles:
            continue
        metadata = metadata_of(proposal.roles[role], role)
        for keyid, signature in by_key.items():
            before = dict(metadata.signatures)
            metadata.signatures[keyid] = Signature(keyid, signature)
            proposal.roles[role] = metadata.to_bytes().decode()
            if keyid in before or keyid not in signatures_of(proposal, roles)[role].signed:
                metadata.signatures.clear()
                metadata.signatures.update(before)
                proposal.roles[role] = metadata.to_bytes().decode()
            else:
                taken += 1
    return taken


def metadata_of(text: str, role: str) -> Metadata[Targets]:
    """The metadata of a role.

    Raises:
        SigningKeyError: It is none.
    """
    try:
        metadata = Metadata[Targets].from_bytes(text.encode())
    except RepositoryError as error:
        raise SigningKeyError(f"waiting: {role}: {error}; remove it and publish again") from error
    if not isinstance(metadata.signed, Targets):
        raise SigningKeyError(f"waiting: {role}: holds {metadata.signed.type}; remove it and publish again")
    return metadata
