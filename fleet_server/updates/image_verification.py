"""Whether uploaded metadata may follow what the image repository shows now: the TUF client's rules, and a few of ours.

Pure: bytes in, verified roles out.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping

from tuf.api.exceptions import EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_roles import all_targets, bins_of, reached

TIMESTAMP_FILE = "timestamp.json"
_IsShown = Callable[[str, bytes], bool]
_EVER = dt.datetime.min.replace(tzinfo=dt.UTC)


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
    targets = _roles(trusted, take, lambda name, data: stored(name) == data)
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


def _roles(trusted: TrustedMetadataSet, take: Callable[[str], bytes], is_shown: _IsShown) -> dict[str, TargetFile]:
    roles = reached(_loader(trusted, take, is_shown))
    for file in trusted.snapshot.meta:
        role = file.removesuffix(".json")
        # Bins of an earlier number stay in the snapshot, as they must (TUF, 5.5.5), and mean nothing any more.
        if role not in roles and bins_of(roles.get(role.rpartition("-bins-")[0])) is None:
            raise UploadRefused(f"role {role!r} is in the snapshot, but the targets role does not delegate to it")
    return all_targets(roles)


def _loader(
    trusted: TrustedMetadataSet, take: Callable[[str], bytes], is_shown: _IsShown
) -> Callable[[str, str], Targets]:
    """Gives verified roles.

    A model's role that is shown already may have expired: no device believes it, and its approver is to renew it. Were
    it refused here, that one model would keep all others from being published, and its renewal from being signed.
    """
    meta, now = trusted.snapshot.meta, trusted.reference_time

    def load(role: str, delegator: str) -> Targets:
        if f"{role}.json" not in meta:
            raise UploadRefused(f"the snapshot lacks the role {role!r}, to which {delegator!r} delegates")
        name = f"{meta[f'{role}.json'].version}.{role}.json"
        data = take(name)
        # Timestamp and snapshot were held against the true time when the targets role was loaded.
        trusted.reference_time = _EVER if delegator != Root.type and is_shown(name, data) else now
        try:
            return trusted.update_delegated_targets(data, role, delegator)
        finally:
            trusted.reference_time = now

    return load


def shown_roles(stored: Callable[[str], bytes | None]) -> dict[str, Targets]:
    """The roles that the repository shows now, by name; its own files are not verified again."""
    meta = _shown_snapshot(stored)
    if f"{Targets.type}.json" not in meta:
        return {}

    def load(role: str, _delegator: str) -> Targets:
        file = f"{role}.json"
        data = stored(f"{meta[file].version}.{file}") if file in meta else None
        return Metadata[Targets].from_bytes(data).signed if data is not None else _nothing()

    return reached(load)


def _shown_snapshot(stored: Callable[[str], bytes | None]) -> dict[str, MetaFile]:
    """What the snapshot that the repository shows now says of each role's file."""
    timestamp = stored(TIMESTAMP_FILE)
    if timestamp is None:
        return {}
    version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = stored(f"{version}.snapshot.json")
    return dict(Metadata[Snapshot].from_bytes(snapshot).signed.meta) if snapshot else {}


def shown_names(stored: Callable[[str], bytes | None]) -> list[str]:
    """The names of the metadata files that are shown now, without the roots."""
    timestamp = stored(TIMESTAMP_FILE)
    if timestamp is None:
        return []
    version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    files = (f"{meta.version}.{file}" for file, meta in _shown_snapshot(stored).items())
    return [TIMESTAMP_FILE, f"{version}.snapshot.json", *files]


def shown_targets(stored: Callable[[str], bytes | None]) -> dict[str, TargetFile]:
    """The targets that the repository shows now."""
    roles = shown_roles(stored)
    return all_targets(roles) if roles else {}


def verify_shown(stored: Callable[[str], bytes | None], *, root: bytes, now: dt.datetime) -> dict[str, Targets]:
    """The roles of a repository, verified from a root that whoever asks trusts: what an approver judges by.

    Raises:
        UploadRefused: They are not signed as that root and its successors ask for, or root, timestamp, snapshot or
            targets have expired.
    """
    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = now

    def take(name: str) -> bytes:
        data = stored(name)
        if data is None:
            raise UploadRefused(f"the server does not give {name}")
        return data

    try:
        while (data := stored(f"{trusted.root.version + 1}.root.json")) is not None:
            trusted.update_root(data)
        trusted.update_timestamp(take(TIMESTAMP_FILE))
        trusted.update_snapshot(take(f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"))
        return reached(_loader(trusted, take, lambda *_: True))
    except (RepositoryError, ValueError) as error:
        raise UploadRefused(f"the server's metadata is not to be trusted: {error}") from error


def _nothing() -> Targets:
    return Targets(version=1)
