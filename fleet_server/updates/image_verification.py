"""Whether uploaded metadata may follow what the image repository shows now: the TUF client's rules, and a few of ours.

Pure: bytes in, verified roles out.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping

from tuf.api.exceptions import EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.repository import parse_target
from fleet_server.updates.errors import UploadRefused

TIMESTAMP_FILE = "timestamp.json"


@dataclasses.dataclass(frozen=True)
class VerifiedUpload:
    """What may be made visible.

    Args:
        files: Bytes by file name, in the order they must be written: what a file names comes before it.
        targets: Every target of the repository by its path.
    """

    files: dict[str, bytes]
    targets: dict[str, TargetFile]


def verify_upload(
    files: Mapping[str, bytes], stored: Callable[[str], bytes | None], *, root: bytes, now: dt.datetime
) -> VerifiedUpload | None:
    """Check an upload as a device would that has seen everything stored so far.

    Args:
        stored: Gives a file that the repository shows now, by name.
        root: The repository's trust anchor.
    Returns:
        What to write, or None where the upload is what is shown already.
    Raises:
        UploadRefused: A signature, version, expiry or path is wrong, or a file is missing.
    """
    if TIMESTAMP_FILE in files and files[TIMESTAMP_FILE] == stored(TIMESTAMP_FILE):
        return None
    try:
        return _verified(files, stored, root, now)
    except (RepositoryError, ValueError) as error:
        raise UploadRefused(f"the metadata is not accepted: {error}") from error


def _verified(
    files: Mapping[str, bytes], stored: Callable[[str], bytes | None], root: bytes, now: dt.datetime
) -> VerifiedUpload:
    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = now
    written: dict[str, bytes] = {}

    def take(name: str) -> bytes:
        known = stored(name)
        data = files.get(name, known)
        if data is None:
            raise UploadRefused(f"the upload lacks {name}")
        written[name] = data
        return data

    while (name := f"{trusted.root.version + 1}.root.json") in files or stored(name) is not None:
        trusted.update_root(take(name))
    _load_shown(trusted, stored)
    if TIMESTAMP_FILE not in files:
        raise UploadRefused(f"the upload lacks {TIMESTAMP_FILE}")
    try:
        trusted.update_timestamp(files[TIMESTAMP_FILE])
    except EqualVersionNumberError as error:
        raise UploadRefused(
            f"{TIMESTAMP_FILE}: version {trusted.timestamp.version} is shown already, with other bytes"
        ) from error
    _load_shown_snapshot(trusted, stored)
    trusted.update_snapshot(take(f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"))
    targets = _roles(trusted, take)
    written[TIMESTAMP_FILE] = files[TIMESTAMP_FILE]
    return VerifiedUpload(files=written, targets=targets)


def _load_shown(trusted: TrustedMetadataSet, stored: Callable[[str], bytes | None]) -> None:
    """What is shown now is what a rollback is measured by; its own expiry does not matter."""
    data = stored(TIMESTAMP_FILE)
    if data is None:
        return
    try:
        trusted.update_timestamp(data)
    except ExpiredMetadataError:
        return
    except RepositoryError:
        # The keys were rotated since: TUF forgets timestamp and snapshot then (5.3.11, fast-forward recovery).
        return


def _load_shown_snapshot(trusted: TrustedMetadataSet, stored: Callable[[str], bytes | None]) -> None:
    shown = stored(TIMESTAMP_FILE)
    if shown is None:
        return
    version = Metadata[Timestamp].from_bytes(shown).signed.snapshot_meta.version
    data = stored(f"{version}.snapshot.json")
    if data is None:
        return
    try:
        trusted.update_snapshot(data, trusted=True)
    except RepositoryError:
        # Expired, or not the one that the new timestamp names: loaded all the same, as the one not to go back from.
        return


def _roles(trusted: TrustedMetadataSet, take: Callable[[str], bytes]) -> dict[str, TargetFile]:
    meta = trusted.snapshot.meta
    targets = trusted.update_targets(take(f"{meta['targets.json'].version}.targets.json"))
    found = _targets_of("targets", targets, None)
    for file in sorted(meta.keys() - {"targets.json"}):
        role = file.removesuffix(".json")
        if targets.delegations is None or not targets.delegations.roles or role not in targets.delegations.roles:
            raise UploadRefused(f"role {role!r} is in the snapshot, but the targets role does not delegate to it")
        delegated = trusted.update_delegated_targets(take(f"{meta[file].version}.{file}"), role, Targets.type)
        found |= _targets_of(role, delegated, targets.delegations.roles[role].is_delegated_path)
    return found


def _targets_of(role: str, targets: Targets, allowed: Callable[[str], bool] | None) -> dict[str, TargetFile]:
    for path, target in targets.targets.items():
        try:
            parse_target(path)
        except ManifestError as error:
            raise UploadRefused(f"role {role!r}: {error}") from error
        if allowed is not None and not allowed(path):
            raise UploadRefused(f"role {role!r} may not sign {path!r}: another model's key is needed")
        if "sha256" not in target.hashes:
            raise UploadRefused(f"role {role!r}: target {path!r} has no SHA-256")
    return dict(targets.targets)


def shown_targets(stored: Callable[[str], bytes | None]) -> dict[str, TargetFile]:
    """The targets that the repository shows now; its own files are not verified again."""
    timestamp = stored(TIMESTAMP_FILE)
    if timestamp is None:
        return {}
    version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = stored(f"{version}.snapshot.json")
    found: dict[str, TargetFile] = {}
    for file, meta in (Metadata[Snapshot].from_bytes(snapshot).signed.meta if snapshot else {}).items():
        data = stored(f"{meta.version}.{file}")
        if data is not None:
            found |= Metadata[Targets].from_bytes(data).signed.targets
    return found
